// What is counted and timed, and how it is told.
//
// The record file holds the arrays below in this order, each a u64 count and then float64 values,
// little-endian: latencies_ms, sent_at_s, failed_ms, failed_at_s, lags_ms, waits_ms.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace generator {

struct Tally {
  // Of good answers, in the order in which they came; a time counts from the intended send.
  std::vector<double> latencies_ms;
  std::vector<double> sent_at_s;  // the intended send after the start
  std::vector<double> failed_ms;
  std::vector<double> failed_at_s;
  // Of sends of the open loop: the moment when the generator looked at a due send, minus the
  // intended one; and from there the wait for a free connection.
  std::vector<double> lags_ms;
  std::vector<double> waits_ms;
  std::map<std::string, std::size_t> errors;  // failures by reason
  std::map<int, std::size_t> statuses;        // of all answers that could be read
  std::size_t scheduled = 0;
  std::size_t sent = 0;
  std::size_t missed = 0;  // due and not sent before the end of the sending
  std::size_t max_in_flight = 0;
  std::size_t connects = 0;
  double began = 0;  // unix time in seconds
  double ended = 0;
  double last_send_s = 0;   // after the start
  double seconds = 0;       // from the start to the last answer, at least the sending
  double sending_s = 0;     // from the start to the end of the sending
  double cpu_user_s = 0;
  double cpu_sys_s = 0;
  double busy = 0;  // CPU seconds a second while sending
  bool ran_out = false;
  bool interrupted = false;

  void good(double latency_ms, double at_s);
  void failed(const std::string& reason, double after_ms, double at_s);
  std::string to_json() const;
  // Raises BadInput when `path` cannot be written.
  void write_record(const std::string& path) const;
};

// User and system CPU seconds of this process.
struct CpuTime {
  double user_s = 0;
  double sys_s = 0;
};
CpuTime cpu_time();

// CLOCK_MONOTONIC in ns, and unix time in seconds.
std::int64_t monotonic_ns();
double unix_s();

}  // namespace generator
