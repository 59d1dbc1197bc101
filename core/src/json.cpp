#include "json.h"

#include <charconv>
#include <cstring>

#include "errors.h"
#include "utf8.h"

namespace toxicity {
namespace {

constexpr int kMostLevels = 64;

class Reader {
  public:
    Reader(std::string_view text, const std::string& what) : text_(text), what_(what) {}

    Json document() {
        Json value = read(0);
        skip_space();
        if (at_ != text_.size()) fail("text behind its end");
        return value;
    }

  private:
    [[noreturn]] void fail(const char* why) const {
        throw BadInput(what_ + " has " + why + " at byte " + std::to_string(at_) +
                       ", expected JSON as this project writes it; make it again");
    }

    void skip_space() {
        while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) && text_[at_]) at_++;
    }

    bool take(char wanted) {
        if (at_ < text_.size() && text_[at_] == wanted) {
            at_++;
            return true;
        }
        return false;
    }

    bool take_word(std::string_view word) {
        if (text_.substr(at_, word.size()) != word) return false;
        at_ += word.size();
        return true;
    }

    Json read(int level) {
        if (level > kMostLevels) fail("too many levels");
        skip_space();
        Json value;
        if (take('{')) {
            value.kind = Json::Kind::object;
            read_members(value, level);
        } else if (take('[')) {
            value.kind = Json::Kind::array;
            read_items(value, level);
        } else if (take('"')) {
            value.kind = Json::Kind::string;
            value.text = string();
        } else if (take_word("true")) {
            value.kind = Json::Kind::boolean;
            value.boolean = true;
        } else if (take_word("false")) {
            value.kind = Json::Kind::boolean;
        } else if (!take_word("null")) {
            value.kind = Json::Kind::number;
            value.text = number();
        }
        return value;
    }

    void read_members(Json& value, int level) {
        skip_space();
        if (take('}')) return;
        do {
            skip_space();
            if (!take('"')) fail("no name of a member");
            std::string name = string();
            skip_space();
            if (!take(':')) fail("no colon");
            value.members.emplace_back(std::move(name), read(level + 1));
            skip_space();
        } while (take(','));
        if (!take('}')) fail("an object without an end");
    }

    void read_items(Json& value, int level) {
        skip_space();
        if (take(']')) return;
        do {
            value.items.push_back(read(level + 1));
            skip_space();
        } while (take(','));
        if (!take(']')) fail("an array without an end");
    }

    std::string number() {
        // Python writes these three, too; nothing here reads them.
        for (std::string_view word : {"NaN", "Infinity", "-Infinity"})
            if (take_word(word)) return std::string(word);
        const std::size_t start = at_;
        while (at_ < text_.size() && std::strchr("+-.0123456789eE", text_[at_]) && text_[at_]) at_++;
        if (at_ == start) fail("no value");
        return std::string(text_.substr(start, at_ - start));
    }

    std::uint32_t hex4() {
        std::uint32_t unit = 0;
        const char* first = text_.data() + at_;
        if (text_.size() - at_ < 4 || std::from_chars(first, first + 4, unit, 16).ptr != first + 4)
            fail("a broken \\u escape");
        at_ += 4;
        return unit;
    }

    std::uint32_t escaped_point() {
        const std::uint32_t high = hex4();
        if (high < 0xD800 || high > 0xDFFF) return high;
        if (high > 0xDBFF || !take_word("\\u")) fail("half of a surrogate pair");
        const std::uint32_t low = hex4();
        if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair");
        return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    }

    std::string string() {
        std::string out;
        for (;;) {
            const std::size_t start = at_;
            while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\' &&
                   static_cast<unsigned char>(text_[at_]) >= 0x20)
                at_++;
            out.append(text_, start, at_ - start);
            if (take('"')) break;
            if (!take('\\') || at_ == text_.size()) fail("a string without an end");
            static constexpr char kEscapes[] = "\"\\/bfnrt", kMeant[] = "\"\\/\b\f\n\r\t";
            const char escape = text_[at_++];
            if (escape == 'u')
                append_utf8(escaped_point(), out);
            else if (const char* found = escape ? std::strchr(kEscapes, escape) : nullptr)
                out += kMeant[found - kEscapes];
            else
                fail("an unknown escape");
        }
        if (invalid_utf8_at(out) != kValid) fail("a string that is not UTF-8 before");
        return out;
    }

    std::string_view text_;
    const std::string& what_;
    std::size_t at_ = 0;
};

[[noreturn]] void wrong_kind(const char* what, const char* wanted) {
    throw BadInput(std::string(what) + " is not " + wanted + "; make the file again");
}

}  // namespace

Json Json::parse(std::string_view text, const std::string& what) {
    return Reader(text, what).document();
}

const Json* Json::find(std::string_view name) const {
    for (auto member = members.rbegin(); member != members.rend(); ++member)
        if (member->first == name) return &member->second;
    return nullptr;
}

const Json& Json::at(std::string_view name) const {
    if (const Json* found = find(name)) return *found;
    throw BadInput("the member '" + std::string(name) + "' is missing; make the file again");
}

const std::string& Json::as_string(const char* what) const {
    if (kind != Kind::string) wrong_kind(what, "a string");
    return text;
}

std::int64_t Json::as_integer(const char* what) const {
    std::int64_t value = 0;
    const char* end = text.data() + text.size();
    const auto read = std::from_chars(text.data(), end, value);
    if (kind != Kind::number || read.ec != std::errc() || read.ptr != end)
        wrong_kind(what, "a whole number of 64 bits");
    return value;
}

const std::vector<Json>& Json::as_array(const char* what) const {
    if (kind != Kind::array) wrong_kind(what, "an array");
    return items;
}

}  // namespace toxicity
