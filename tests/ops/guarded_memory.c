// Preloaded into a process, gives each tensor pages of its own: the page before and the page behind cannot be touched,
// and neither can the tensor's once it is freed. What is left of its own pages is checked when it is freed.
//
// GUARDED_MEMORY=begin puts a tensor at the start of its pages, end puts it at their end, as far as the alignment that
// torch asks for allows.
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

extern void* __libc_memalign(size_t, size_t);
extern void __libc_free(void*);

enum { kUntouched = 0xa5, kUnwritten = 0xff };    // bytes of 0xff are NaN in every float
static const size_t kReserved = (size_t)1 << 38;  // addresses, each used once

static unsigned char* reserved;
static size_t used, page;
static size_t* sizes;  // of the allocation that starts on a page
static int at_end;

static void* map(size_t size, int protection) {
  void* p = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? NULL : p;
}

__attribute__((constructor)) static void reserve(void) {
  const char* placement = getenv("GUARDED_MEMORY");
  if (!placement) return;
  at_end = strcmp(placement, "end") == 0;
  page = (size_t)sysconf(_SC_PAGESIZE);
  sizes = map(kReserved / page * sizeof(size_t), PROT_READ | PROT_WRITE);
  reserved = map(kReserved, PROT_NONE);
  if (sizes && reserved) return;
  fputs("guarded memory: no address space left\n", stderr);
  abort();
}

static size_t pages_for(size_t size) { return (size + page - 1) / page * page; }

int posix_memalign(void** result, size_t alignment, size_t size) {
  if (!reserved || !size || alignment > page) {
    *result = __libc_memalign(alignment, size);
    return *result ? 0 : ENOMEM;
  }
  const size_t pages = pages_for(size), start = __atomic_fetch_add(&used, pages + page, __ATOMIC_RELAXED);
  if (start + pages + 2 * page > kReserved) return ENOMEM;
  unsigned char* const first = reserved + start + page;
  if (mprotect(first, pages, PROT_READ | PROT_WRITE)) return ENOMEM;
  unsigned char* const p = first + (at_end ? (pages - size) / alignment * alignment : 0);
  memset(first, kUntouched, pages);
  memset(p, kUnwritten, size);
  sizes[(p - reserved) / page] = size;
  *result = p;
  return 0;
}

void free(void* given) {
  unsigned char* const p = given;
  if (!reserved || p < reserved || p >= reserved + kReserved) {
    __libc_free(given);
    return;
  }
  unsigned char* const first = reserved + (size_t)(p - reserved) / page * page;
  const size_t size = sizes[(p - reserved) / page], pages = pages_for(size);
  for (unsigned char* q = first; q < first + pages; ++q) {
    if (q == p) q += size;
    if (q < first + pages && *q != kUntouched) {
      fprintf(stderr, "guarded memory: byte %td of a tensor of %zu bytes was written\n", q - p, size);
      abort();
    }
  }
  mmap(first, pages, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}
