// Alignments of the C++ kernels without PyTorch, for tests/test_arm.py: what to align comes on standard input, results go
// to standard output. All numbers are float64 on the way.
#include <unistd.h>

#include <vector>

#include "cpu/align_backward.h"

using namespace coalign;

namespace {

// All of it: true. The end of the input: false.
bool receive(void* to, std::size_t bytes) {
  char* p = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = read(0, p, bytes);
    if (got <= 0) return false;
    p += got;
    bytes -= got;
  }
  return true;
}

template <class T>
struct Rows {
  std::vector<T> data;
  std::vector<T*> rows;
  int width;

  Rows(int count, int width) : data(count * width), rows(count), width(width) {
    for (int i = 0; i < count; ++i) rows[i] = data.data() + i * width;
  }

  static Rows received(int count, int width) {
    Rows made(count, width);
    for (T& x : made.data) {
      double number;
      receive(&number, sizeof(number));
      x = static_cast<T>(number);
    }
    return made;
  }

  Operand<T> operand() const { return {rows.data(), rows.data(), width}; }

  void send() const {
    const std::vector<double> numbers(data.begin(), data.end());
    write(1, numbers.data(), numbers.size() * sizeof(double));
  }
};

// A side's gradient of its output and, unless its gradient of e takes means, the product with that output.
template <class T>
Arrived<T> arrived(const Rows<T>& out, const Rows<T>& dout, const std::vector<T>& lse, std::vector<T>& delta, bool centred) {
  for (std::size_t i = 0; !centred && i < dout.data.size(); ++i) delta[i / dout.width] += dout.data[i] * out.data[i];
  return {dout.operand(), delta.data(), lse.data()};
}

struct Sizes {
  int m, n, width_f, width_a, width_b, bytes, workers;
};

template <class T>
void align(const Sizes& s, double scale) {
  auto received = [](int count, int width) { return Rows<T>::received(count, width); };
  const Rows<T> f_a = received(s.m, s.width_f), f_b = received(s.n, s.width_f), a = received(s.m, s.width_a),
                b = received(s.n, s.width_b), dbeta = received(s.m, s.width_b), dalpha = received(s.n, s.width_a);
  const Tokens<T> of_a{s.m, f_a.operand(), a.operand()}, of_b{s.n, f_b.operand(), b.operand()};
  Rows<T> beta(s.m, s.width_b), alpha(s.n, s.width_a), df_a(s.m, s.width_f), df_b(s.n, s.width_f), da(s.m, s.width_a),
      db(s.n, s.width_b);
  const int room_a = round_up(s.m, kBlock), room_b = round_up(s.n, kBlock);
  std::vector<T> lse_a(room_a), lse_b(room_b), delta_a(room_a), delta_b(room_b);
  const bool whole = is_whole(s.m, s.n);
  const Share all{true, true, {0, s.m}, {0, s.n}};
  const Rule<T> rule{static_cast<T>(scale)};
  const Bias<const T> bias{};
  Ahead ahead;

  auto both = [&](Crew* crew) {
    Arena& arena = Arena::of_this_thread();
    align_forward<T, T>(
        of_a, of_b, all, rule, bias, beta.rows.data(), alpha.rows.data(), lse_a.data(), lse_b.data(), arena, ahead, crew);
    align_backward<T, T>(
        of_a, of_b, all, rule, bias, arrived(beta, dbeta, lse_a, delta_a, whole || s.n == 1),
        arrived(alpha, dalpha, lse_b, delta_b, whole || s.m == 1),
        df_a.rows.data(), df_b.rows.data(), da.rows.data(), db.rows.data(), {}, arena, ahead, crew);
  };
  s.workers > 1 ? Crew::led(s.workers, [&](Crew& crew) { both(&crew); }) : both(nullptr);
  for (const Rows<T>* out : {&beta, &alpha, &df_a, &df_b, &da, &db}) out->send();
}

}  // namespace

int main() {
  Sizes sizes;
  double scale;
  while (receive(&sizes, sizeof(sizes)) && receive(&scale, sizeof(scale))) {
    sizes.bytes == 4 ? align<float>(sizes, scale) : align<double>(sizes, scale);
  }
}
