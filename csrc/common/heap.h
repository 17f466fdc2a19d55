// Where results lie in memory: what torch's allocator leaves to the system and to the C library.
#pragma once
#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace stylekern {

// Asks for huge pages under a large new allocation. First touch of a page of 4 KiB costs about as much as writing it
// ten times; of 2 MiB, about twice. Only whole huge pages within the range are concerned, so no memory is wasted.
inline void prefer_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  if (bytes < int64_t(2 * kHugePage)) return;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: may fail
#else
  (void)data, (void)bytes;
#endif
}

// Has the C library keep what calls with results of this size free, for the next call.
//
// glibc gives the end of its heap back to the system once more is free there than twice the largest block that it has
// mapped by itself so far. Where a call's results together are more than that, as three gradients of one size are, each
// call has fresh pages, and these cost several times what the operator does. A block of a few results' size, mapped and
// freed without being touched, raises the limit, as one larger tensor would. Limits that a user has set stay. (Of two
// threads that raise it at once the lower may be noted: one block more, later.)
inline void keep_on_heap(int64_t bytes) {
#ifdef __GLIBC__
  constexpr int64_t kResults = 4, kSmallest = int64_t{1} << 17;          // what glibc begins with
  constexpr int64_t kLargest = (int64_t{1} << 25) - (int64_t{1} << 16);  // larger blocks are always mapped
  static std::atomic<int64_t> kept = kSmallest;
  const int64_t wanted = std::min(kResults * bytes, kLargest);
  if (wanted <= kept.load(std::memory_order_relaxed)) return;
  kept.store(wanted, std::memory_order_relaxed);
  void* volatile block = std::malloc(size_t(wanted));  // volatile: a compiler leaves out a block that nobody reads
  std::free(block);
#else
  (void)bytes;
#endif
}

// Lets the next result of this size lie where this one does, once it is freed: caches may still have those lines.
//
// glibc (2.26 on) cuts an aligned block out of a larger one, and frees what is left before and behind it, up to about
// a hundred bytes. A cache per thread keeps seven such pieces of each size, and they are the next small blocks that
// anyone gets. While one is not free, or in that cache, it is not joined with the memory beside it, and the next
// result, which again is cut out of a larger block, does not fit between two of them: a loop of calls wanders through
// two places and more. So the pieces beside a result are kept out of use until the next result is asked for, and given
// back then past the full cache, where that allocation joins them. Those of results of one call (see Together) are
// kept until the next call.
class PiecesBeside {
 public:
  // While it is, results that this thread asks for are of one call.
  class Together {
   public:
    Together() {
      of_thread().give_back();
      of_thread().together_ = true;
    }
    ~Together() { of_thread().together_ = false; }
    Together(const Together&) = delete;
    Together& operator=(const Together&) = delete;
  };

  // Those of this thread's last results.
  static PiecesBeside& of_thread() {
    static thread_local PiecesBeside pieces;
    return pieces;
  }

  // Smaller results are left alone: three places for them fit into a second-level cache.
  static constexpr int64_t kWorthIt = int64_t{1} << 19;

  void keep(const void* data, int64_t bytes) {
#ifdef __GLIBC__
    constexpr uintptr_t kBeside = 128;
    const uintptr_t first = reinterpret_cast<uintptr_t>(data) - kBeside, length = uintptr_t(bytes) + 2 * kBeside;
    for (Kept& kept : kept_) {
      std::array<void*, kCached + 2> blocks;
      for (void*& block : blocks) block = std::malloc(kept.size);
      for (void* block : blocks) {
        if (reinterpret_cast<uintptr_t>(block) - first <= length && kept.count < kept.blocks.size())
          kept.blocks[kept.count++] = block;
        else
          std::free(block);
      }
    }
#else
    (void)data, (void)bytes;
#endif
  }

  void give_back() {
    if (together_) return;
    for (Kept& kept : kept_) {
      if (kept.count == 0) continue;
      std::array<void*, kCached> others;
      for (void*& block : others) block = std::malloc(kept.size);
      for (void* block : others) std::free(block);
      while (kept.count > 0) std::free(kept.blocks[--kept.count]);
    }
  }

  ~PiecesBeside() { give_back(); }

 private:
  static constexpr size_t kCached = 7;   // of a size, in a thread's cache
  static constexpr size_t kResults = 4;  // of a call

  struct Kept {
    size_t size, count = 0;
    std::array<void*, 2 * kResults> blocks{};
  };
  bool together_ = false;
  Kept kept_[6] = {{24}, {40}, {56}, {72}, {88}, {104}};  // one for each size of piece
};

}  // namespace stylekern
