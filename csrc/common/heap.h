// Where results lie in memory: what torch's allocator leaves to the system and to the C library.
#pragma once
#include <algorithm>
#include <array>
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
