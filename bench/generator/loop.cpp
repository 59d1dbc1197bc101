#include "loop.h"

#include <netdb.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace generator {
namespace {

constexpr std::int64_t kSecond = 1000000000;
constexpr std::int64_t kScan = kSecond / 10;  // between looks for what timed out
constexpr int kEvents = 32;
constexpr std::size_t kBuffer = 64 << 10;

std::int64_t ns(double seconds) { return static_cast<std::int64_t>(seconds * 1e9); }
double seconds(std::int64_t time) { return static_cast<double>(time) * 1e-9; }

}  // namespace

Loop::Loop(const Options& options, const Requests& requests)
    : options_(options),
      requests_(requests),
      schedule_(schedule(options)),
      connections_(static_cast<std::size_t>(options.connections)),
      buffer_(kBuffer) {
  if (schedule_.size() > requests_.size()) {
    throw BadInput("--bodies has " + std::to_string(requests_.size()) + " bodies, expected the " +
                   std::to_string(schedule_.size()) + " that --rate and --seconds send");
  }
  resolve();
  epoll_ = epoll_create1(EPOLL_CLOEXEC);
  timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;  // no read is needed: arming it again makes a new edge
  event.data.ptr = nullptr;
  if (epoll_ < 0 || timer_ < 0 || epoll_ctl(epoll_, EPOLL_CTL_ADD, timer_, &event) != 0) {
    throw BadInput(std::string("epoll or timerfd cannot be used: ") + std::strerror(errno));
  }
  for (auto it = connections_.rbegin(); it != connections_.rend(); ++it) closed_.push_back(&*it);
  for (auto* times : {&tally_.latencies_ms, &tally_.sent_at_s, &tally_.lags_ms, &tally_.waits_ms}) {
    times->reserve(schedule_.empty() ? requests_.size() : schedule_.size());
  }
  tally_.scheduled = schedule_.size();
}

Loop::~Loop() {
  for (Connection& connection : connections_) {
    if (connection.fd >= 0) ::close(connection.fd);
  }
  if (timer_ >= 0) ::close(timer_);
  if (epoll_ >= 0) ::close(epoll_);
}

void Loop::resolve() {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error =
      getaddrinfo(options_.host.c_str(), std::to_string(options_.port).c_str(), &wanted, &found);
  if (error != 0) {
    throw BadInput("--host " + options_.host + " has no address: " + gai_strerror(error));
  }
  family_ = found->ai_family;
  address_.assign(reinterpret_cast<const char*>(found->ai_addr), found->ai_addrlen);
  freeaddrinfo(found);
}

Tally Loop::run(const volatile std::sig_atomic_t& stop) {
  tally_.began = unix_s();
  cpu_began_ = cpu_time();
  began_ = last_answer_ = now_ = monotonic_ns();
  end_ = began_ + ns(options_.seconds);
  next_scan_ = began_ + kScan;
  epoll_event events[kEvents];
  while (true) {
    now_ = monotonic_ns();
    look();
    dispatch();
    if (sending_ && stop != 0) tally_.interrupted = true;
    if (sending_ && (stop != 0 || now_ >= end_ || tally_.ran_out)) stop_sending();
    const bool drained = in_flight_ == 0 && waiting_.empty();
    if (!sending_ && (drained || stop > 1 || now_ - stopped_ >= ns(options_.drain_s))) break;
    if (now_ >= next_scan_) scan();
    std::int64_t wake = std::min(next_scan_, sending_ ? end_ : stopped_ + ns(options_.drain_s));
    if (sending_ && next_ < schedule_.size()) wake = std::min(wake, began_ + schedule_[next_]);
    arm(wake);
    const int count = epoll_wait(epoll_, events, kEvents, -1);
    now_ = monotonic_ns();
    for (int n = 0; n < count; ++n) {
      if (events[n].data.ptr == nullptr) continue;  // the timer
      handle(*static_cast<Connection*>(events[n].data.ptr), events[n].events);
      look();
      dispatch();
    }
  }
  give_up();
  report_times();
  return tally_;
}

// Takes note of every send that is due by now.
void Loop::look() {
  if (!sending_) return;
  while (next_ < schedule_.size() && began_ + schedule_[next_] <= now_) {
    const Due due{next_, began_ + schedule_[next_], now_};
    tally_.lags_ms.push_back(1e3 * seconds(now_ - due.intended));
    waiting_.push_back(due);
    ++next_;
  }
}

// Hands what waits to free connections; in a closed loop each free one takes the next request.
void Loop::dispatch() {
  const bool closed_loop = options_.rate <= 0;
  while (closed_loop ? sending_ && !tally_.ran_out : !waiting_.empty()) {
    Connection* connection = free_connection();
    if (connection == nullptr) return;
    if (closed_loop) {
      begin(*connection, Due{next_, now_, now_});
      tally_.ran_out = ++next_ == requests_.size();
    } else {
      const Due due = waiting_.front();
      waiting_.pop_front();
      begin(*connection, due);
    }
  }
}

Connection* Loop::free_connection() {
  std::vector<Connection*>& from = idle_.empty() ? closed_ : idle_;
  if (from.empty()) return nullptr;
  Connection* connection = from.back();
  from.pop_back();
  return connection;
}

void Loop::begin(Connection& connection, const Due& due) {
  connection.due = due;
  connection.sent = now_;
  connection.written = 0;
  connection.partial.clear();
  tally_.last_send_s = seconds(now_ - began_);
  if (options_.rate > 0) tally_.waits_ms.push_back(1e3 * seconds(now_ - due.looked));
  ++tally_.sent;
  tally_.max_in_flight = std::max(tally_.max_in_flight, ++in_flight_);
  if (connection.state == Connection::State::idle) {
    connection.state = Connection::State::busy;
    write(connection);
  } else {
    open(connection);
  }
}

void Loop::count_failure(const Due& due, const std::string& reason) {
  tally_.failed(reason, 1e3 * seconds(now_ - due.intended), seconds(due.intended - began_));
}

void Loop::stop_sending() {
  sending_ = false;
  stopped_ = now_;
  tally_.missed = waiting_.size();  // they are sent late, and their latencies count
  const CpuTime used = cpu_time();
  tally_.sending_s = seconds(now_ - began_);
  tally_.busy = (used.user_s + used.sys_s - cpu_began_.user_s - cpu_began_.sys_s) /
                std::max(1e-9, tally_.sending_s);
}

// Ends requests whose answer takes too long, and lets failed connections try again.
void Loop::scan() {
  next_scan_ = now_ + kScan;
  const std::int64_t oldest = now_ - ns(options_.timeout_s);
  for (Connection& connection : connections_) {
    const bool in_use = connection.state == Connection::State::busy ||
                        connection.state == Connection::State::connecting;
    if (in_use && connection.sent < oldest) fail(connection, "no answer within --timeout-s");
  }
  closed_.insert(closed_.end(), resting_.begin(), resting_.end());
  resting_.clear();
}

void Loop::give_up() {
  now_ = monotonic_ns();
  for (Connection& connection : connections_) {
    if (connection.state == Connection::State::busy ||
        connection.state == Connection::State::connecting) {
      fail(connection, "not answered in time");
    }
  }
  for (const Due& due : waiting_) count_failure(due, "not sent: no connection was free");
}

void Loop::arm(std::int64_t at) {
  if (at == armed_ && at > now_) return;
  armed_ = at;
  itimerspec when{};
  when.it_value.tv_sec = at / kSecond;
  when.it_value.tv_nsec = at % kSecond;
  timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr);
}

void Loop::report_times() {
  const CpuTime used = cpu_time();
  tally_.cpu_user_s = used.user_s - cpu_began_.user_s;
  tally_.cpu_sys_s = used.sys_s - cpu_began_.sys_s;
  tally_.seconds = seconds(std::max(last_answer_, stopped_) - began_);
  tally_.ended = unix_s();
}

}  // namespace generator
