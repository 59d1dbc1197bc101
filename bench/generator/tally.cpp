#include "tally.h"

#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "options.h"

namespace generator {
namespace {

constexpr std::size_t kMostReasons = 100;
const char* const kOther = "other reasons";

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

std::string exact(double value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.6f", value);
  return text;
}

// Bytes beyond ASCII become U+FFFD, as the text may be cut within a character.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (byte < 0x20 || byte == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(byte));
      out += escape;
    } else if (byte > 0x7f) {
      out += "\\ufffd";
    } else {
      out += c;
    }
  }
  return out + '"';
}

// Percentiles by linear interpolation, as NumPy's.
std::string spread(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  std::string out = "{";
  for (const double p : {50.0, 90.0, 99.0, 99.9, 100.0}) {
    double value = 0;
    if (!values.empty()) {
      const double place = p / 100 * static_cast<double>(values.size() - 1);
      const auto low = static_cast<std::size_t>(place);
      const std::size_t high = std::min(low + 1, values.size() - 1);
      value = values[low] + (place - std::floor(place)) * (values[high] - values[low]);
    }
    out += (p == 100.0 ? std::string("\"max\"") : "\"p" + number(p) + "\"") + ": ";
    out += number(value) + (p == 100.0 ? "}" : ", ");
  }
  return out;
}

}  // namespace

void Tally::good(double latency_ms, double at_s) {
  latencies_ms.push_back(latency_ms);
  sent_at_s.push_back(at_s);
}

void Tally::failed(const std::string& reason, double after_ms, double at_s) {
  const bool full = errors.size() >= kMostReasons && errors.find(reason) == errors.end();
  ++errors[full ? kOther : reason];
  failed_ms.push_back(after_ms);
  failed_at_s.push_back(at_s);
}

std::string Tally::to_json() const {
  std::string out = "{";
  const auto field = [&out](const char* name, const std::string& value) {
    if (out.size() > 1) out += ", ";
    out += '"' + std::string(name) + "\": " + value;
  };
  const double cpu_s = cpu_user_s + cpu_sys_s;
  const std::size_t requests = latencies_ms.size() + failed_ms.size();
  field("requests", std::to_string(requests));
  field("answered", std::to_string(latencies_ms.size()));
  field("failed", std::to_string(failed_ms.size()));
  field("scheduled", std::to_string(scheduled));
  field("sent", std::to_string(sent));
  field("missed", std::to_string(missed));
  field("max_in_flight", std::to_string(max_in_flight));
  field("connects", std::to_string(connects));
  field("seconds", number(seconds));
  field("sending_s", number(sending_s));
  field("began", exact(began));
  field("ended", exact(ended));
  field("last_send", exact(began + last_send_s));
  field("cpu_user_s", number(cpu_user_s));
  field("cpu_sys_s", number(cpu_sys_s));
  field("cpu_s", number(cpu_s));
  field("cpu_us_a_request", number(1e6 * cpu_s / static_cast<double>(sent > 0 ? sent : 1)));
  field("busy", number(busy));
  field("lag_ms", spread(lags_ms));
  field("wait_ms", spread(waits_ms));
  field("ran_out", ran_out ? "true" : "false");
  field("interrupted", interrupted ? "true" : "false");
  std::string pairs;
  for (const auto& [status, count] : statuses) {
    pairs += (pairs.empty() ? "\"" : ", \"") + std::to_string(status) + "\": ";
    pairs += std::to_string(count);
  }
  field("statuses", "{" + pairs + "}");
  pairs.clear();
  for (const auto& [reason, count] : errors) {
    pairs += (pairs.empty() ? "" : ", ") + quoted(reason) + ": " + std::to_string(count);
  }
  field("errors", "{" + pairs + "}");
  return out + "}";
}

void Tally::write_record(const std::string& path) const {
  std::FILE* file = std::fopen(path.c_str(), "wb");
  bool good_so_far = file != nullptr;
  for (const auto* values :
       {&latencies_ms, &sent_at_s, &failed_ms, &failed_at_s, &lags_ms, &waits_ms}) {
    if (!good_so_far) break;
    const std::uint64_t count = values->size();
    good_so_far = std::fwrite(&count, sizeof count, 1, file) == 1 &&
                  (count == 0 ||
                   std::fwrite(values->data(), sizeof(double), count, file) == count);
  }
  if (file != nullptr) good_so_far = std::fclose(file) == 0 && good_so_far;
  if (!good_so_far) {
    throw BadInput("--record " + path + " cannot be written: " + std::strerror(errno));
  }
}

CpuTime cpu_time() {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return {seconds(used.ru_utime), seconds(used.ru_stime)};
}

std::int64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{1000000000} * now.tv_sec + now.tv_nsec;
}

double unix_s() {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace generator
