// The part of `Loop` that deals with one connection: open, write, read, judge, close.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "loop.h"

namespace generator {
namespace {

using State = Connection::State;
constexpr std::size_t kShownBytes = 200;  // of a refusal: enough to say why

}  // namespace

void Loop::open(Connection& connection) {
  ++tally_.connects;
  connection.state = State::connecting;
  connection.fd = socket(family_, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  const int on = 1;
  epoll_event event{};
  // Edge-triggered, so that no request costs a call to change what is waited for.
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.ptr = &connection;
  if (connection.fd < 0 ||
      setsockopt(connection.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 ||
      (connect(connection.fd, reinterpret_cast<const sockaddr*>(address_.data()),
               static_cast<socklen_t>(address_.size())) != 0 &&
       errno != EINPROGRESS) ||
      epoll_ctl(epoll_, EPOLL_CTL_ADD, connection.fd, &event) != 0) {
    fail(connection, std::string("cannot connect: ") + std::strerror(errno));
  }
  // Once it is writable, `handle` sends the request, also where connect() had nothing to wait for.
}

void Loop::write(Connection& connection) {
  const std::string_view request = requests_[connection.due.request];
  while (connection.written < request.size()) {
    const ssize_t count = send(connection.fd, request.data() + connection.written,
                               request.size() - connection.written, MSG_NOSIGNAL);
    if (count >= 0) {
      connection.written += static_cast<std::size_t>(count);
    } else if (errno == EAGAIN) {
      return;
    } else if (errno != EINTR) {
      // An answer may lie there still: that of a server which refuses before it has read all.
      const int error = errno;
      receive(connection, EPOLLRDHUP);
      if (connection.state == State::busy) {
        fail(connection, std::string("cannot send: ") + std::strerror(error));
      }
      return;
    }
  }
}

void Loop::handle(Connection& connection, std::uint32_t events) {
  if (connection.state == State::closed) return;
  if (connection.state == State::connecting) {
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(connection.fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) {
      fail(connection, std::string("cannot connect: ") + std::strerror(error));
      return;
    }
    if ((events & EPOLLOUT) == 0) return;
    connection.state = State::busy;
    write(connection);
  } else if (connection.state == State::busy && (events & EPOLLOUT) != 0) {
    write(connection);
  }
  const bool readable = (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
  if (readable && connection.fd >= 0) receive(connection, events);
}

void Loop::receive(Connection& connection, std::uint32_t events) {
  while (connection.fd >= 0) {
    const ssize_t count = recv(connection.fd, buffer_.data(), buffer_.size(), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0 || connection.state != State::busy) {
      // Idle: the server hung up, or said what nobody asked for.
      if (connection.state == State::busy) {
        const bool begun = !connection.partial.empty();
        fail(connection, count < 0 ? std::string("connection broken: ") + std::strerror(errno)
                         : begun   ? "connection closed within the answer"
                                   : "connection closed before the answer");
      } else {
        idle_.erase(std::remove(idle_.begin(), idle_.end(), &connection), idle_.end());
        close(connection);
        closed_.push_back(&connection);
      }
      return;
    }
    const auto size = static_cast<std::size_t>(count);
    if (!take(connection, {buffer_.data(), size})) return;
    // A short read has emptied the socket; what comes later makes an edge of its own.
    if (size < buffer_.size() && (events & (EPOLLRDHUP | EPOLLHUP)) == 0) return;
  }
}

// Adds `bytes` to the answer; false when the connection is closed thereafter.
bool Loop::take(Connection& connection, std::string_view bytes) {
  if (!connection.partial.empty()) {
    connection.partial += bytes;
    bytes = connection.partial;
  }
  const Answer answer = read_answer(bytes, joined_);
  if (answer.progress == Progress::more) {
    if (connection.partial.empty()) connection.partial = bytes;
    return true;
  }
  now_ = monotonic_ns();
  if (answer.progress == Progress::broken) {
    fail(connection, std::string("the answer ") + answer.fault);
    return false;
  }
  judge(connection, answer);
  last_answer_ = now_;
  --in_flight_;
  const bool unfinished = connection.written < requests_[connection.due.request].size();
  connection.partial.clear();
  if (answer.close || unfinished) {
    close(connection);
    closed_.push_back(&connection);
    return false;
  }
  connection.state = State::idle;
  idle_.push_back(&connection);
  return true;
}

void Loop::judge(const Connection& connection, const Answer& answer) {
  ++tally_.statuses[answer.status];
  const Due& due = connection.due;
  const std::string& wanted = options_.must_contain;
  if (answer.status != 200) {
    const std::string shown(answer.body.substr(0, kShownBytes));
    count_failure(due, (std::to_string(answer.status) + ": " + shown).substr(0, kShownBytes));
  } else if (answer.body.find(wanted) == std::string_view::npos) {
    count_failure(due, "the answer does not contain " + wanted);
  } else {
    tally_.good(static_cast<double>(now_ - due.intended) * 1e-6,
                static_cast<double>(due.intended - began_) * 1e-9);
  }
}

// Counts the request of a connection as failed and closes the connection.
void Loop::fail(Connection& connection, const std::string& reason) {
  const bool connecting = connection.state == State::connecting;
  count_failure(connection.due, reason);
  --in_flight_;
  close(connection);
  // In a closed loop, a server that cannot be reached must not be asked without a pause.
  const bool rests = connecting && options_.rate <= 0;
  (rests ? resting_ : closed_).push_back(&connection);
}

void Loop::close(Connection& connection) {
  if (connection.fd >= 0) ::close(connection.fd);
  connection.fd = -1;
  connection.state = State::closed;
}

}  // namespace generator
