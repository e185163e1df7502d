"""Recognises a file's format by its first bytes, whatever its name."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "NPY")
"""Those that are read, under Pillow's names, and NumPy's arrays."""
_READ = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),  # BigTIFF
    (b"MM\0+", "TIFF"),
    (b"\x93NUMPY", "NPY"),
)
_NOT_READ = (
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\0\0\1\0", "a Windows icon"),
    (0, b"%PDF", "PDF"),
    (0, b"\x89HDF", "HDF5"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
    (0, b"PK\3\4", "a zip archive"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"<svg", "SVG"),
    (0, b"<?xml", "XML"),
    (0, b"<html", "a web page"),
    (0, b"<!doctype html", "a web page"),
)


def format_of(content: bytes) -> str:
    """One of `FORMATS`.

    Raises:
        ValueError: When it is none of them; says what it looks like, if that is known.
    """
    for signature, name in _READ:
        if content.startswith(signature):
            return name
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    told = f"none of the formats {', '.join(FORMATS)}"
    start = content[:256].lower()
    for offset, signature, name in _NOT_READ:
        if start[offset:].startswith(signature.lower()):
            raise ValueError(f"{told}: it looks like {name}")
    raise ValueError(told)
