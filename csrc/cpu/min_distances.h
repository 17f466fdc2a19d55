// min_distances on the CPU: the kernels of one target, included by *_target.h. What is exact runs in double, on
// whole rows; what a tile of the matrix of distances needs, in the type of the sums.
namespace stylekern::STYLEKERN_TARGET {

// As many values as a vector of floats holds, in two vectors of doubles (of doubles: in two vectors).
struct Wide {
  Vec<double> low, high;
};
typedef float HalfOfFloats __attribute__((vector_size(STYLEKERN_VECTOR_BYTES / 2)));

template <class T>
inline constexpr int kWide = 2 * kLanes<double>;

STYLEKERN_INLINE Wide load_wide(const double* p) { return {load(p), load(p + kLanes<double>)}; }
STYLEKERN_INLINE Wide load_wide(const float* p) {
  HalfOfFloats low, high;
  std::memcpy(&low, p, sizeof low);
  std::memcpy(&high, p + kLanes<double>, sizeof high);
  return {__builtin_convertvector(low, Vec<double>), __builtin_convertvector(high, Vec<double>)};
}
template <class T>
  requires(sizeof(T) == 2)
STYLEKERN_INLINE Wide load_wide(const T* p) {
  float buffer[kLanes<float>];
  store(buffer, load(p));
  return load_wide(buffer);
}
template <class T>
STYLEKERN_INLINE Wide load_wide(const T* p, int64_t count) {  // zero from lane `count` on
  T buffer[kWide<T>] = {};
  std::memcpy(buffer, p, size_t(count) * sizeof(T));
  return load_wide(buffer);
}

STYLEKERN_INLINE void store_wide(double* p, Wide v) {
  store(p, v.low);
  store(p + kLanes<double>, v.high);
}
STYLEKERN_INLINE void store_wide(float* p, Wide v) {
  const HalfOfFloats low = __builtin_convertvector(v.low, HalfOfFloats);
  const HalfOfFloats high = __builtin_convertvector(v.high, HalfOfFloats);
  std::memcpy(p, &low, sizeof low);
  std::memcpy(p + kLanes<double>, &high, sizeof high);
}
STYLEKERN_INLINE Vec<double> saturated(Vec<double> v, double most) {
  v = v > most ? broadcast(most) : v;
  return v < -most ? broadcast(-most) : v;
}
template <class T>
  requires(sizeof(T) == 2)
STYLEKERN_INLINE void store_wide(T* p, Wide v) {
  // A gradient of size 1 / eps is more than float16 holds.
  if constexpr (std::is_same_v<T, Half>) v = {saturated(v.low, 65504), saturated(v.high, 65504)};
  float buffer[kLanes<float>];
  store_wide(buffer, v);
  store(p, load(buffer));
}

template <class T>
struct MinDistancesKernels {
  using A = Acc<T>;
  using Index = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;  // of the width of A, as lanes of Lanes<A> are

  // `count` sums over values a and b in double, of which f adds up one vector: equal rows give equal bits, wherever
  // they lie.
  template <int count, class U, class F>
  static std::array<double, count> reduce(const T* a, const U* b, int64_t d, const F& f) {
    Vec<double> sums[4][count] = {};
    const auto add = [&](int k, Wide u, Wide v) STYLEKERN_ALWAYS_INLINE {
      f(sums[k], u.low, v.low);
      f(sums[k + 1], u.high, v.high);
    };
    constexpr int step = kWide<T>;
    int64_t i = 0;
    for (; i + 2 * step <= d; i += 2 * step) {
      add(0, load_wide(a + i), load_wide(b + i));
      add(2, load_wide(a + i + step), load_wide(b + i + step));
    }
    for (; i + step <= d; i += step) add(0, load_wide(a + i), load_wide(b + i));
    if (i < d) add(2, load_wide(a + i, d - i), load_wide(b + i, d - i));
    std::array<double, count> result = {};
    for (int s = 0; s < count; ++s) {
      const Vec<double> total = (sums[0][s] + sums[1][s]) + (sums[2][s] + sums[3][s]);
      for (int l = 0; l < kLanes<double>; ++l) result[s] += total[l];
    }
    return result;
  }
  static double dot(const T* a, const T* b, int64_t d) {
    return reduce<1>(a, b, d, [](auto& sum, auto u, auto v) STYLEKERN_ALWAYS_INLINE { sum[0] = fma(u, v, sum[0]); })[0];
  }
  static double squared_distance(const T* a, const T* b, int64_t d) {
    return reduce<1>(a, b, d, [](auto& sum, auto u, auto v) STYLEKERN_ALWAYS_INLINE {
      const auto difference = u - v;
      sum[0] = fma(difference, difference, sum[0]);
    })[0];
  }

  static void scan(const Features<T>& side, const double* weights, int64_t d, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const auto [square, checksum] =
          reduce<2>(side.row(i), weights, d, [](auto& sums, auto u, auto weight) STYLEKERN_ALWAYS_INLINE {
            sums[0] = fma(u, u, sums[0]);
            sums[1] = fma(u, weight, sums[1]);
          });
      side.square[i] = square, side.checksum[i] = checksum;
    }
  }

  // products[i, j] = x[i] . y[j] of short rows: each is the same sum wherever it lies, and of any number of threads.
  static void multiply(const A* x, int64_t x_stride, int64_t rows, const A* y, int64_t y_stride, int64_t columns,
                       int64_t d, A* products) {
    // As many sums as registers hold beside the rows of x and one of y.
    constexpr int kRows = kBytes == 64 ? 4 : 2, kColumns = kBytes == 64 ? 6 : 4;
    for_row_blocks<kRows>(rows, [&](int64_t i, auto r) STYLEKERN_ALWAYS_INLINE {
      for_row_blocks<kColumns>(columns, [&](int64_t j, auto c) STYLEKERN_ALWAYS_INLINE {
        multiply_block<r, c>(x + i * x_stride, x_stride, y + j * y_stride, y_stride, d, products + i * columns + j,
                             columns);
      });
    });
  }
  template <int rows, int columns>
  STYLEKERN_NOINLINE static void multiply_block(const A* x, int64_t x_stride, const A* y, int64_t y_stride, int64_t d,
                                                A* products, int64_t stride) {
    Vec<A> sum[rows][columns] = {};
    for_vectors<A>(d, [&](int64_t k, auto count) STYLEKERN_ALWAYS_INLINE {
      Vec<A> xs[rows];
#pragma GCC unroll 6
      for (int r = 0; r < rows; ++r) xs[r] = load(x + r * x_stride + k, count);
#pragma GCC unroll 6
      for (int c = 0; c < columns; ++c) {
        const Vec<A> ys = load(y + c * y_stride + k, count);
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) sum[r][c] = fma(xs[r], ys, sum[r][c]);
      }
    });
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c) products[r * stride + c] = lane_total<A>(sum[r][c]);
  }

  // to = row / norm, in the type of the sums. A division: of one value exactly 1 or -1.
  static void normalize(const T* row, double norm, int64_t d, A* to) {
    // Norms near the ends of float's range are moved away from there first.
    const double shift = norm > 1e30 ? 1e-30 : norm < 1e-30 ? 1e30 : 1;
    const A divisor = A(norm * shift);
    for_vectors<A>(d, [&](int64_t k, auto count)
                          STYLEKERN_ALWAYS_INLINE { store(to + k, load(row + k, count) * A(shift) / divisor, count); });
  }

  // to = row - centre, less than where a product of two overflows; returns the sum of squares.
  static A centre(const T* row, const T* centre, int64_t d, A* to) {
    const Vec<A> most = broadcast(A(1e17));
    for_vectors<A>(d, [&](int64_t k, auto count) STYLEKERN_ALWAYS_INLINE {
      Vec<A> v = load(row + k, count) - load(centre + k, count);
      v = v > most ? most : v;
      store(to + k, v < -most ? -most : v, count);
    });
    return A(MinDistancesKernels<A>::dot(to, to, d));
  }

  static void widen(const T* row, int64_t d, A* to) {
    for_vectors<A>(d,
                   [&](int64_t k, auto count) STYLEKERN_ALWAYS_INLINE { store(to + k, load(row + k, count), count); });
  }

  struct CosineOrder {
    const Tile<A>& tile;
    STYLEKERN_INLINE Vec<A> operator()(int64_t r, int64_t j, auto count) const {
      const Vec<A> product = load(tile.values + r * tile.count + j, count) * -tile.row_scale[r];
      return fma(product, load(tile.column_scale + j), load(tile.column_add + j));
    }
  };
  static STYLEKERN_INLINE Vec<A> clamp_square(Vec<A> v) {
    const Vec<A> least = broadcast(A(kLeastSquare)), most = broadcast(A(kLargestSquare));
    v = v < least ? least : v;
    return v > most ? most : v;
  }
  struct ExpandedOrder {
    const Tile<A>& tile;
    STYLEKERN_INLINE Vec<A> operator()(int64_t r, int64_t j, auto count) const {
      const Vec<A> squares = load(tile.column_add + j) + tile.row_add[r];
      return clamp_square(fma(load(tile.values + r * tile.count + j, count), broadcast(A(-2)), squares));
    }
  };
  // Of normalised rows |x - y|^2 orders as -cos does, without the rounding of 1 - cos. A zero row's scale is 0, and
  // what is added 2: its distance is 1.
  template <Metric metric>
  struct DifferenceOrder {
    const Tile<A>& tile;
    STYLEKERN_INLINE Vec<A> operator()(int64_t r, int64_t j, auto) const {
      Vec<A> sum = {};
      for (int64_t k = 0; k < tile.d; ++k) {
        const Vec<A> difference = load(tile.columns + k * tile.stride + j) - tile.rows[r * tile.d + k];
        sum = fma(difference, difference, sum);
      }
      if (metric == Metric::kEuclidean) return clamp_square(sum + load(tile.column_add + j));
      const Vec<A> scaled = fma(sum, load(tile.column_scale + j), load(tile.column_add + j));
      return fma(scaled, broadcast(tile.row_scale[r]), broadcast(tile.row_add[r]));
    }
  };

  // Row minima of rows [row0, row1) of a tile, and what these rows make of the columns' minima. NaN is less than
  // nothing, and the first of equals stays.
  template <class Order>
  static void sweep(const Order& order, int64_t row0, int64_t row1, A* row_best, int64_t* row_index, int64_t first_col,
                    A* col_best, Index* col_index) {
    const Tile<A>& tile = order.tile;
    constexpr A inf = std::numeric_limits<A>::infinity();
    constexpr int lanes = kLanes<A>;
    for (int64_t j = 0; j < tile.stride; j += lanes) {
      store(col_best + j, broadcast(inf));
      std::memset(col_index + j, 0, sizeof(Lanes<A>));
    }
    for (int64_t r = row0; r < row1; ++r) {
      Vec<A> best = broadcast(inf);
      Lanes<A> index = {}, here = lane_numbers<A>();
      const Lanes<A> row = Lanes<A>{} + Index(r);
      for_vectors<A>(tile.count, [&](int64_t j, auto count) STYLEKERN_ALWAYS_INLINE {
        const Vec<A> v = order(r, j, count), above = load(col_best + j);
        Lanes<A> from;
        std::memcpy(&from, col_index + j, sizeof from);
        from = v < above ? row : from;
        std::memcpy(col_index + j, &from, sizeof from);
        store(col_best + j, v < above ? v : above);
        index = v < best ? here : index;
        best = v < best ? v : best;
        here += Index(lanes);
      });
      for (int l = 0; l < lanes; ++l) {
        const int64_t found = first_col + index[l];
        if (best[l] < row_best[r] || (best[l] == row_best[r] && found < row_index[r] && best[l] < inf))
          row_best[r] = best[l], row_index[r] = found;
      }
    }
  }

  // to = scale * own - sum over the terms of weight * row, in double.
  static void gather(const T* own, double scale, const Term<T>* terms, int64_t count, int64_t d, T* to) {
    constexpr int step = kWide<T>;
    const auto block = [&](int64_t k, auto vectors, auto read, auto write) STYLEKERN_ALWAYS_INLINE {
      constexpr int size = decltype(vectors)::value;
      Wide sums[size];
      for (int u = 0; u < size; ++u) {
        const Wide x = scale != 0 ? read(own + k + u * step) : Wide{};
        sums[u] = {x.low * scale, x.high * scale};
      }
      for (int64_t t = 0; t < count; ++t) {
        const Vec<double> weight = broadcast(-terms[t].weight);
        for (int u = 0; u < size; ++u) {
          const Wide y = read(terms[t].row + k + u * step);
          sums[u] = {fma(weight, y.low, sums[u].low), fma(weight, y.high, sums[u].high)};
        }
      }
      for (int u = 0; u < size; ++u) write(to + k + u * step, sums[u]);
    };
    const auto read = [](const T* p) STYLEKERN_ALWAYS_INLINE { return load_wide(p); };
    const auto write = [](T* p, Wide v) STYLEKERN_ALWAYS_INLINE { store_wide(p, v); };
    int64_t k = 0;
    for (; k + 4 * step <= d; k += 4 * step) block(k, std::integral_constant<int, 4>{}, read, write);
    for (; k + step <= d; k += step) block(k, std::integral_constant<int, 1>{}, read, write);
    if (k < d)
      block(
          k, std::integral_constant<int, 1>{}, [&](const T* p) STYLEKERN_ALWAYS_INLINE { return load_wide(p, d - k); },
          [&](T* p, Wide v) STYLEKERN_ALWAYS_INLINE {
            T buffer[step];
            store_wide(buffer, v);
            std::memcpy(p, buffer, size_t(d - k) * sizeof(T));
          });
  }
};

}  // namespace stylekern::STYLEKERN_TARGET
