#include "admission.h"

#include <algorithm>

#include "contract.h"

namespace toxicity {
namespace {

constexpr double kSmoothing = 0.1;  // weight of the newest call in the mean time of a row
// The overloaded state ends after so long without a refusal; a single call may see few requests
// because another instance has just emptied the queue.
constexpr double kQuiet_s = 0.25;
constexpr double kShortest_s = 0.5, kLongest_s = 8;  // stay in it, the first time and in the end

}  // namespace

std::size_t Admission::admit(const std::vector<int>& rows, double now_s, std::int64_t comments) {
    leave_if_time(now_s);
    const double limit = overloaded_ ? OVERLOADED_WAIT_S : CALM_WAIT_S;
    // A slow model takes its whole batch all the same: no queue is shorter than what runs together.
    const double least = overloaded_ ? 0 : MAX_BATCH_SIZE;
    std::size_t admitted = 0;
    for (double ahead = 0;
         admitted < rows.size() && (ahead * seconds_a_row_ <= limit || ahead < least); admitted++)
        ahead += rows[admitted];
    // A full call says that more waits behind it. With full calls alone for so long, what waits may
    // have waited as long; one of them may be but a pause of the machine.
    const bool full = comments >= MAX_REQUEST_COMMENTS;
    if (!full) full_since_s_ = -1;
    else if (full_since_s_ < 0) full_since_s_ = now_s;
    const bool lasts = full && (overloaded_ || now_s - full_since_s_ >= CALM_WAIT_S);
    if (admitted < rows.size() || lasts) {
        if (!overloaded_) entered_s_ = now_s;
        exceeded_s_ = now_s;
        overloaded_ = true;
    }
    return admitted;
}

void Admission::leave_if_time(double now_s) {
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
