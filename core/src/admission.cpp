#include "admission.h"

#include <algorithm>
#include <numeric>

#include "contract.h"

namespace toxicity {
namespace {

constexpr double kSmoothing = 0.1;  // weight of the newest call in the mean time of a row
// The overloaded state ends after so long without a refusal: as long as the door bounds how many
// requests are here, for that hides what would be refused.
constexpr double kQuiet_s = OVERLOADED_S;
constexpr double kBehind_s = 0.05;  // of full calls alone, until less of each is taken on
constexpr double kLeastShare = 1.0 / 64, kRecovery = 1.25;
// Of the time, calls take at least so much while something always waits; in overload they are so
// short that what lies between them counts.
constexpr double kBusy = 0.9, kStillBusy = 0.75;
constexpr double kShortest_s = 0.5, kLongest_s = 8;  // stay in it, the first time and in the end

}  // namespace

std::size_t Admission::admit(const std::vector<int>& rows, double now_s, std::int64_t comments,
                             std::int64_t largest) {
    leave_if_time(now_s);
    note_idle(now_s);
    const bool full = is_full(comments, largest);
    if (!full) full_since_s_ = -1;
    else if (full_since_s_ < 0) full_since_s_ = now_s;
    // What waits behind full calls alone for so long may have waited as long; one of them may be
    // but a pause of the machine.
    const bool lasts = full && (overloaded_ || now_s - full_since_s_ >= CALM_WAIT_S);
    std::size_t admitted = 0;
    if (overloaded_) {
        admitted = fitting(rows, OVERLOADED_WAIT_S, 0);
        // As many requests as the door lets here at a time may fill a few calls.
        const bool behind = full && now_s - full_since_s_ >= kBehind_s;
        share_ = behind ? std::max(kLeastShare, share_ / 2) : std::min(1.0, share_ * kRecovery);
        if (behind) admitted = std::min(admitted, share_of(rows));
    } else {
        // A slow model takes its whole batch all the same: no queue is shorter than what runs
        // together.
        admitted = fitting(rows, CALM_WAIT_S, MAX_BATCH_SIZE);
        share_ = 1;
        owed_rows_ = 0;
    }
    if (admitted < rows.size() || lasts) {
        if (!overloaded_) entered_s_ = now_s;
        exceeded_s_ = now_s;
        overloaded_ = true;
    }
    return admitted;
}

// Whether more waits behind a call: the next request, which may be as large as one of the last, did
// not fit, and the instance hardly ever waits. (A call may also be one large request alone.)
bool Admission::is_full(std::int64_t comments, std::int64_t largest) {
    largest_[call_++ % largest_.size()] = largest;
    const std::int64_t next = *std::max_element(largest_.begin(), largest_.end());
    return comments + next > MAX_REQUEST_COMMENTS && busy_ >= (overloaded_ ? kStillBusy : kBusy);
}

// How many of the requests begin within so many seconds, or behind fewer rows than `least`.
std::size_t Admission::fitting(const std::vector<int>& rows, double seconds, double least) const {
    std::size_t admitted = 0;
    for (double ahead = 0; admitted < rows.size() &&
                           (ahead * seconds_a_row_ <= seconds || ahead < least);
         admitted++)
        ahead += rows[admitted];
    return admitted;
}

// How many of the requests are `share_` of the rows; what they are too few or too many is made up
// for by the next calls.
std::size_t Admission::share_of(const std::vector<int>& rows) {
    const int all = std::accumulate(rows.begin(), rows.end(), 0);
    owed_rows_ += share_ * all;
    std::size_t admitted = 0;
    while (admitted < rows.size() && 2 * owed_rows_ >= rows[admitted]) owed_rows_ -= rows[admitted++];
    return admitted;
}

// Learn how much of the time the calls take.
void Admission::note_idle(double now_s) {
    if (ended_s_ >= began_s_) {
        const double passed = std::max(1e-9, now_s - began_s_);
        const double weight = std::min(1.0, passed / CALM_WAIT_S);
        busy_ += weight * ((ended_s_ - began_s_) / passed - busy_);
    }
    began_s_ = now_s;
}

void Admission::leave_if_time(double now_s) {
    if (full_since_s_ >= 0) return;  // more waited behind the last call
    if (overloaded_ && now_s - exceeded_s_ >= kQuiet_s) {
        overloaded_ = false;
        stay_s_ = kShortest_s;
    } else if (overloaded_ && now_s - entered_s_ >= stay_s_) {
        overloaded_ = false;
        stay_s_ = std::min(2 * stay_s_, kLongest_s);
    }
}

void Admission::observe(int rows, double seconds) {
    if (!rows) return;
    const double newest = seconds / rows;
    const double known = seconds_a_row_ > 0 ? seconds_a_row_ : newest;
    seconds_a_row_ = known + kSmoothing * (newest - known);
}

}  // namespace toxicity
