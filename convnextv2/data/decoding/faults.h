// Mapped memory that cannot be read, as a return value instead of the end of the process.
//
// A disk or network that fails, and a file that has become shorter, are SIGBUS to who reads a mapped
// file. Here it is caught, for as long as this thread reads one.
#pragma once

#include <atomic>
#include <csetjmp>
#include <csignal>
#include <cstdint>

namespace convnextv2 {

inline thread_local sigjmp_buf* way_back = nullptr;
inline struct sigaction before_us;

inline void on_fault(int) {
  if (way_back != nullptr) siglongjmp(*way_back, 1);
  // Somebody else's: on return the same instruction fails again, and theirs to deal with it is.
  sigaction(SIGBUS, &before_us, nullptr);
}

[[gnu::constructor]] inline void catch_faults() {
  struct sigaction ours = {};
  ours.sa_handler = on_fault;
  // The signal stays unblocked, so that no mask has to be saved for every image.
  ours.sa_flags = SA_NODEFER;
  sigaction(SIGBUS, &ours, &before_us);
}

// What `act` returns, or `fault` if it met memory that cannot be read. As with errors of libjpeg, no
// C++ object with a destructor may live where it reads: faults jump out of it.
template <int32_t fault, class Act>
int32_t unless_fault(Act act) {
  sigjmp_buf here;
  if (sigsetjmp(here, 0)) {
    way_back = nullptr;
    return fault;
  }
  way_back = &here;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const int32_t result = act();
  std::atomic_signal_fence(std::memory_order_seq_cst);
  way_back = nullptr;
  return result;
}

}  // namespace convnextv2
