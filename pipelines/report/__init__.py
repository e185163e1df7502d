"""HTML pages: the report of a run, the reconstruction gallery, the collapse analysis."""
