#include "requests.h"

#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

namespace generator {
namespace {

struct Close {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

bool read_u32(std::FILE* file, std::uint32_t& value) {
  unsigned char raw[4];
  if (std::fread(raw, 1, sizeof raw, file) != sizeof raw) return false;
  value = static_cast<std::uint32_t>(raw[0]) | static_cast<std::uint32_t>(raw[1]) << 8 |
          static_cast<std::uint32_t>(raw[2]) << 16 | static_cast<std::uint32_t>(raw[3]) << 24;
  return true;
}

}  // namespace

Requests::Requests(const Options& options) {
  const std::unique_ptr<std::FILE, Close> file(std::fopen(options.bodies.c_str(), "rb"));
  if (!file) {
    throw BadInput("--bodies " + options.bodies + " cannot be read: " + std::strerror(errno));
  }
  const bool ipv6 = options.host.find(':') != std::string::npos;
  std::string head = "POST " + options.path + " HTTP/1.1\r\nHost: ";
  head += (ipv6 ? "[" + options.host + "]" : options.host) + ":" + std::to_string(options.port);
  for (const std::string& header : options.headers) head += "\r\n" + header;
  head += "\r\nContent-Length: ";
  std::uint32_t count = 0;
  std::uint32_t length = 0;
  bool good = read_u32(file.get(), count);
  for (std::uint32_t n = 0; good && n < count; ++n) {
    good = read_u32(file.get(), length);
    if (!good) break;
    bytes_ += head;
    bytes_ += std::to_string(length) + "\r\n\r\n";
    const std::size_t at = bytes_.size();
    // Piece by piece: a damaged length must not take all memory.
    char piece[1 << 16];
    while (good && bytes_.size() - at < length) {
      const std::size_t left = length - (bytes_.size() - at);
      const std::size_t wanted = left < sizeof piece ? left : sizeof piece;
      good = std::fread(piece, 1, wanted, file.get()) == wanted;
      bytes_.append(piece, wanted);
    }
    ends_.push_back(bytes_.size());
  }
  if (!good || std::fgetc(file.get()) != EOF) {
    throw BadInput("--bodies " + options.bodies + " has another length than its " +
                   std::to_string(count) + " bodies say, expected u32 count, then u32 length and "
                   "bytes of each");
  }
  if (ends_.empty()) throw BadInput("--bodies " + options.bodies + " is empty, expected a body");
}

std::vector<std::int64_t> schedule(const Options& options) {
  std::vector<std::int64_t> due;
  if (options.rate <= 0) return due;
  std::mt19937_64 bits(options.seed);
  // In [0, 1); not std::exponential_distribution, whose values are each library's own.
  const auto uniform = [&bits] { return static_cast<double>(bits() >> 11) * 0x1p-53; };
  const double first = uniform();
  double at = options.poisson ? -std::log1p(-first) / options.rate : first / options.rate;
  for (std::size_t n = 1; at < options.seconds; ++n) {
    due.push_back(static_cast<std::int64_t>(at * 1e9));
    at = options.poisson ? at - std::log1p(-uniform()) / options.rate
                         : (first + static_cast<double>(n)) / options.rate;
  }
  return due;
}

}  // namespace generator
