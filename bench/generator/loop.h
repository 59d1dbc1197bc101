// One thread that sends requests when they are due and takes answers as they come.
#pragma once

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "answer.h"
#include "options.h"
#include "requests.h"
#include "tally.h"

namespace generator {

// A request that is due: sent, or waiting for a free connection. Times in ns, CLOCK_MONOTONIC.
struct Due {
  std::size_t request = 0;
  std::int64_t intended = 0;
  std::int64_t looked = 0;  // when the generator saw that it is due
};

struct Connection {
  enum class State { closed, connecting, idle, busy };
  int fd = -1;
  State state = State::closed;
  Due due;
  std::int64_t sent = 0;    // when it was handed to this connection
  std::size_t written = 0;  // bytes of the request
  std::string partial;      // what came of an answer in several pieces
};

class Loop {
 public:
  // Raises BadInput when the host has no address or the bodies are too few for the schedule.
  Loop(const Options& options, const Requests& requests);
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Sends, then waits for what is in flight. `stop` ends the sending early when it is 1, and the
  // waiting too when it is 2.
  Tally run(const volatile std::sig_atomic_t& stop);

 private:
  void resolve();
  void look();
  void dispatch();
  Connection* free_connection();
  void begin(Connection& connection, const Due& due);
  void open(Connection& connection);
  void write(Connection& connection);
  void handle(Connection& connection, std::uint32_t events);
  void receive(Connection& connection, std::uint32_t events);
  bool take(Connection& connection, std::string_view bytes);
  void judge(const Connection& connection, const Answer& answer);
  void fail(Connection& connection, const std::string& reason);
  void count_failure(const Due& due, const std::string& reason);
  void close(Connection& connection);
  void stop_sending();
  void scan();
  void give_up();
  void arm(std::int64_t at);
  void report_times();

  const Options& options_;
  const Requests& requests_;
  const std::vector<std::int64_t> schedule_;
  std::vector<Connection> connections_;
  std::vector<Connection*> idle_, closed_, resting_;
  std::deque<Due> waiting_;
  std::vector<char> buffer_;
  std::string joined_;
  std::string address_;  // a sockaddr
  int family_ = 0;
  int epoll_ = -1;
  int timer_ = -1;
  std::int64_t armed_ = 0;
  std::int64_t now_ = 0, began_ = 0, end_ = 0, stopped_ = 0, next_scan_ = 0, last_answer_ = 0;
  CpuTime cpu_began_;
  std::size_t next_ = 0;  // request
  std::size_t in_flight_ = 0;
  bool sending_ = true;
  Tally tally_;
};

}  // namespace generator
