// Runs CUDA kernels on the CPU: include this before a .cuh, compile with g++, and call its launch functions.
//
// Each CUDA thread is a fiber. The threads of a block run one after the other, each up to its next barrier, in an order
// that the caller picks: results that depend on the order come from a race. Shared memory is an allocation of exactly
// the size asked for, filled with NaN at the start of every block. Threads of a block that wait at different barriers
// are an error, not a hang.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

// The toolkit's headers define these as attributes that only nvcc knows.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_host {

enum class Order { kAscending, kDescending, kShuffled };

struct Settings {
  Order order = Order::kAscending;
  unsigned seed = 0;
  unsigned max_grid_x = 2147483647;  // fewer: the launches whose kernels stride over the grid get this many blocks
};
inline Settings settings;

// What a thread waits for: the line of a barrier or of a warp's shuffle. Two threads meet at one line only.
struct Waiting {
  enum Kind { kNothing, kBlock, kWarp, kDone } kind = kNothing;
  int line = 0;
  bool operator==(const Waiting&) const = default;
};

struct Fiber {
  static constexpr size_t kStackBytes = 64 << 10;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;  // of the address sanitizer
  dim3 thread;
  Waiting waiting;
  uint64_t lane_value = 0;  // what the thread offers to its warp
};

struct Block {
  dim3 grid, block, index;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept from launch to launch, for their stacks
  size_t threads = 0;                          // of this block: the first fibers
  size_t current = 0;
  std::function<void()> body;
  std::unique_ptr<char[]> shared;
  ucontext_t scheduler;
  void* scheduler_fake_stack = nullptr;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
};
inline Block state;

inline Fiber& current() { return *state.fibers[state.current]; }

// The address sanitizer has to know which stack the next instruction runs on.
inline void start_switch([[maybe_unused]] void** fake, [[maybe_unused]] const void* stack,
                         [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fake, stack, bytes);
#endif
}
inline void finish_switch([[maybe_unused]] void* fake, [[maybe_unused]] const void** stack = nullptr,
                          [[maybe_unused]] size_t* bytes = nullptr) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, stack, bytes);
#endif
}

// Gives the CPU back to the scheduler until whatever the thread waits for has come.
inline void wait(Waiting waiting) {
  Fiber& fiber = current();
  fiber.waiting = waiting;
  const bool done = waiting.kind == Waiting::kDone;
  start_switch(done ? nullptr : &fiber.fake_stack, state.scheduler_stack, state.scheduler_stack_bytes);
  swapcontext(&fiber.context, &state.scheduler);
  finish_switch(fiber.fake_stack);
}

inline void fiber_main() {
  finish_switch(nullptr, &state.scheduler_stack, &state.scheduler_stack_bytes);
  state.body();
  wait({Waiting::kDone, 0});
}

inline void resume(size_t thread) {
  state.current = thread;
  Fiber& fiber = current();
  start_switch(&state.scheduler_fake_stack, fiber.stack.get(), Fiber::kStackBytes);
  swapcontext(&state.scheduler, &fiber.context);
  finish_switch(state.scheduler_fake_stack);
}

// Releases the threads [begin, end) if all of them wait at one place.
inline bool release(size_t begin, size_t end, Waiting::Kind kind) {
  const Waiting first = state.fibers[begin]->waiting;
  if (first.kind != kind) return false;
  for (size_t i = begin; i < end; ++i)
    if (state.fibers[i]->waiting != first) return false;
  for (size_t i = begin; i < end; ++i) state.fibers[i]->waiting = {};
  return true;
}

// Puts a fiber at the start of the kernel.
inline void restart(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  // Its last run was never unwound: what the sanitizer remembers of those frames no longer holds.
  __asan_unpoison_memory_region(fiber.stack.get(), Fiber::kStackBytes);
#endif
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = Fiber::kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
  fiber.waiting = {};
}

inline void run_block(std::mt19937& random) {
  std::vector<size_t> order(state.threads);
  for (size_t i = 0; i < order.size(); ++i) {
    order[i] = settings.order == Order::kDescending ? order.size() - 1 - i : i;
    restart(*state.fibers[i]);
  }
  while (true) {
    if (settings.order == Order::kShuffled) std::shuffle(order.begin(), order.end(), random);
    for (const size_t i : order)
      if (state.fibers[i]->waiting.kind == Waiting::kNothing) resume(i);
    if (release(0, state.threads, Waiting::kDone)) return;
    bool released = release(0, state.threads, Waiting::kBlock);
    for (size_t warp = 0; warp < state.threads; warp += 32)
      released |= release(warp, std::min(warp + 32, state.threads), Waiting::kWarp);
    if (released) continue;
    std::string where;
    for (size_t i = 0; i < state.threads; ++i) {
      const Waiting w = state.fibers[i]->waiting;
      const std::string place = w.kind == Waiting::kDone ? " the end" : " line " + std::to_string(w.line);
      if (where.find(place) == std::string::npos) where += place;
    }
    throw std::runtime_error("barrier divergence: the threads of a block wait at" + where);
  }
}

template <class Kernel, class... Args>
void launch(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t /*all run at once*/,
            const Args&... args) {
  // What a GPU refuses.
  if (shared_bytes > 48 << 10 || block.x * block.y * block.z > 1024 || grid.y > 65535 || grid.z > 65535)
    throw std::runtime_error("invalid launch configuration");
  grid.x = std::min(grid.x, settings.max_grid_x);
  state.grid = grid, state.block = block;
  state.threads = block.x * block.y * block.z;
  while (state.fibers.size() < state.threads) state.fibers.push_back(std::make_unique<Fiber>());
  for (size_t i = 0; i < state.threads; ++i)
    state.fibers[i]->thread = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
  state.body = [&] { kernel(args...); };
  std::mt19937 random(settings.seed);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        state.index = dim3(x, y, z);
        state.shared.reset(new char[shared_bytes]);
        std::memset(state.shared.get(), 0xff, shared_bytes);  // NaN in every floating-point type
        run_block(random);
      }
}

// Every lane gets the value of the lane that `source` names; of itself where there is none.
template <class T, class Source>
T shuffle(T value, Source source, int line) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const size_t thread = state.current, warp = thread / 32 * 32;
  current().lane_value = 0;
  std::memcpy(&current().lane_value, &value, sizeof(T));
  wait({Waiting::kWarp, line});
  const size_t from = warp + source(thread - warp);
  if (from < warp + 32 && from < state.threads) std::memcpy(&value, &state.fibers[from]->lane_value, sizeof(T));
  wait({Waiting::kWarp, -line});
  return value;
}

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(state.shared.get());
}

}  // namespace cuda_host

#define threadIdx (::cuda_host::current().thread)
#define blockIdx (::cuda_host::state.index)
#define blockDim (::cuda_host::state.block)
#define gridDim (::cuda_host::state.grid)
#define warpSize 32
#define __syncthreads() ::cuda_host::wait({::cuda_host::Waiting::kBlock, __LINE__})
#define __syncwarp(...) ::cuda_host::wait({::cuda_host::Waiting::kWarp, __LINE__})
#define __shfl_xor_sync(mask, value, lanes) \
  ::cuda_host::shuffle(value, [&](size_t lane) { return lane ^ size_t(lanes); }, __LINE__)
#define __shfl_down_sync(mask, value, lanes) \
  ::cuda_host::shuffle(value, [&](size_t lane) { return lane + size_t(lanes); }, __LINE__)
#define __shfl_up_sync(mask, value, lanes) \
  ::cuda_host::shuffle(value, [&](size_t lane) { return lane < size_t(lanes) ? lane : lane - lanes; }, __LINE__)
#define __shfl_sync(mask, value, from) ::cuda_host::shuffle(value, [&](size_t) { return size_t(from) % 32; }, __LINE__)
#define STYLEKERN_SHARED(type, name) type* const name = ::cuda_host::dynamic_shared<type>()
#define STYLEKERN_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::cuda_host::launch(kernel, grid, block, shared_bytes, stream __VA_OPT__(, ) __VA_ARGS__)
template <class Word>
inline void __stwb(Word* p, Word x) {
  *p = x;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
