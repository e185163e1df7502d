// Reports mapped memory that cannot be read by a return value, instead of ending the process.
//
// If a disk or network fails, or a file has become shorter, whoever reads the mapped file gets
// SIGBUS. It is caught here, but only while this thread reads a mapped file.
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
  // The fault is not ours: put the previous handler back. On return, the same instruction fails
  // again and that handler is called.
  sigaction(SIGBUS, &before_us, nullptr);
}

[[gnu::constructor]] inline void catch_faults() {
  struct sigaction ours = {};
  ours.sa_handler = on_fault;
  // The signal stays unblocked in the handler, so that no signal mask has to be saved per image.
  ours.sa_flags = SA_NODEFER;
  sigaction(SIGBUS, &ours, &before_us);
}

// Returns what `act` returns, or `fault` if it met memory that cannot be read. A fault jumps out of
// `act`, like libjpeg's errors, so no C++ object with a destructor may live where it reads.
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
