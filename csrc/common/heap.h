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
// a hundred bytes. A cache per thread keeps seven such pieces of each size. While one is kept it is not joined with the
// memory beside it, and the next result, which again is cut out of a larger block, does not fit between two of them: a
// loop of calls wanders through three places and more. So the pieces beside this result are taken out of that cache,
// and freed again when seven others fill it: then they go where the next large allocation joins them.
inline void join_pieces_beside(const void* data, int64_t bytes) {
#ifdef __GLIBC__
  constexpr int64_t kWorthIt = int64_t{1} << 19;  // three smaller places fit into a second-level cache
  constexpr uintptr_t kBeside = 128;
  if (bytes < kWorthIt) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(data) - kBeside, length = uintptr_t(bytes) + 2 * kBeside;
  for (const size_t size : {24, 40, 56, 72, 88, 104}) {  // one for each size of piece
    std::array<void*, 7 + 2> pieces;
    for (void*& piece : pieces) piece = std::malloc(size);
    std::partition(pieces.begin(), pieces.end(),
                   [&](void* piece) { return reinterpret_cast<uintptr_t>(piece) - first > length; });
    for (void* piece : pieces) std::free(piece);
  }
#else
  (void)data, (void)bytes;
#endif
}

}  // namespace stylekern
