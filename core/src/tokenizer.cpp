#include "tokenizer.h"

#include <cstring>
#include <memory>

#include "contract.h"
#include "errors.h"
#include "utf8.h"

namespace toxicity {
namespace {

constexpr std::size_t kHeadBytes = 8;  // of a long text, so many for each id are read first
constexpr std::int64_t kMostWords = 1 << 24, kMostIds = 1 << 20;

Json parse_tokenizer(std::string_view text) {
    Json document = Json::parse(text, "the tokenizer file");
    const std::int64_t version = document.at("format_version").as_integer("format_version");
    if (version != 1 && version != 2)
        throw BadInput("the tokenizer's format_version is " + std::to_string(version) +
                       ", expected 1 or 2; train again, or use the release that wrote it");
    return document;
}

std::string_view view(const std::uint8_t* bytes, std::size_t length) {
    return {reinterpret_cast<const char*>(bytes), length};
}

// Where a chunk ends, and where it does unless the byte is a `!` with more of the chunk behind it.
constexpr std::array<bool, 256> make_ends(bool bang) {
    std::array<bool, 256> ends{};
    for (std::size_t i = 0; i < 256; i++)
        ends[i] = kKindOf[i] == Kind::space || kKindOf[i] == Kind::mark ||
                  (bang && kKindOf[i] == Kind::bang);
    return ends;
}
constexpr std::array<bool, 256> kEnds = make_ends(false), kMayEnd = make_ends(true);

// Bytes for a folded text, which are kept for the next one.
class Room {
  public:
    // For a text of so many bytes: each may become two, with a space at both ends.
    std::uint8_t* of(std::size_t bytes) {
        const std::size_t wanted = 2 * bytes + 2 + WordKey::kRead;
        if (wanted > size_) {
            size_ = 0;
            bytes_.reset(new std::uint8_t[wanted]);
            size_ = wanted;
        }
        return bytes_.get();
    }
    // One long comment keeps no memory.
    void keep_little() {
        if (size_ <= 1 << 20) return;
        bytes_.reset();
        size_ = 0;
    }

  private:
    std::unique_ptr<std::uint8_t[]> bytes_;
    std::size_t size_ = 0;
};

// Behind two letters or digits and a space: there a text can be cut without a change of its tokens.
std::size_t head_of(std::string_view text, std::size_t from) {
    const auto plain = [&](std::size_t at) {
        const auto byte = static_cast<std::uint8_t>(text[at]);
        return is_word(byte) || (byte >= 'A' && byte <= 'Z');
    };
    for (std::size_t i = from; i + 2 < text.size(); i++)
        if (text[i + 2] == ' ' && plain(i) && plain(i + 1)) return i + 3;
    return text.size();
}

}  // namespace

// The ids of one text as they come; a phrase replaces its two.
class Tokenizer::Ids {
  public:
    Ids(const Tokenizer& of, std::vector<std::int32_t>& ids, int most)
        : phrase_of_(of.phrase_of_), ids_(ids), most_(static_cast<std::size_t>(most)) {
        ids_.clear();
        ids_.push_back(CLS_ID);
    }
    // One more than fits is kept, which says that the text was cut.
    bool full() const { return ids_.size() > most_; }
    const Words& words() const { return words_; }
    // A word was put, unless a part of it did not fit.
    void count(bool unknown, bool respelled) {
        if (full()) return;
        words_.all++;
        words_.unknown += unknown;
        words_.respelled += respelled;
    }
    void count_joined(int runs) { words_.respelled += runs; }
    void put(std::int32_t id) {
        if (full()) return;
        if (joinable_ && !phrase_of_.empty()) {
            const auto pair = static_cast<std::uint64_t>(ids_.back()) << 32 | static_cast<std::uint32_t>(id);
            const auto found = phrase_of_.find(pair);
            if (found != phrase_of_.end()) {
                ids_.back() = found->second;
                joinable_ = false;
                return;
            }
        }
        ids_.push_back(id);
        joinable_ = true;
    }

  private:
    const std::unordered_map<std::uint64_t, std::int32_t>& phrase_of_;
    std::vector<std::int32_t>& ids_;
    std::size_t most_;
    bool joinable_ = false;
    Words words_;
};

Tokenizer::Tokenizer(std::string_view json) : Tokenizer(parse_tokenizer(json)) {}

Tokenizer::Tokenizer(const Json& document) : characters_(document) {
    const std::int64_t max_len = document.at("max_len").as_integer("max_len");
    if (max_len < 1 || max_len > kMostIds)
        throw BadInput("max_len is " + std::to_string(max_len) + ", expected 1 to " +
                       std::to_string(kMostIds) + "; set --max-len");
    max_len_ = static_cast<int>(max_len);
    std::vector<std::string> vocabulary = read_vocabulary(document);
    const Json* respelling = document.find("respelling");
    if (document.at("format_version").text == "2" && respelling &&
        respelling->kind != Json::Kind::null)
        respelling_.emplace(*respelling, vocabulary);
}

std::vector<std::string> Tokenizer::read_vocabulary(const Json& document) {
    const std::vector<Json>& listed = document.at("vocabulary").as_array("vocabulary");
    if (static_cast<std::int64_t>(listed.size()) > kMostWords)
        throw BadInput("the vocabulary has more than 16 million tokens; set --max-vocab");
    static constexpr const char* kSpecial[] = {"[PAD]", "[UNK]", "[CLS]"};
    for (std::size_t i = 0; i < std::size(kSpecial); i++)
        if (listed.size() <= i || listed[i].as_string("a token") != kSpecial[i])
            throw BadInput("the vocabulary does not start with [PAD], [UNK], [CLS]; train again to "
                           "write a new one");
    vocabulary_size_ = static_cast<std::int32_t>(listed.size());
    std::vector<std::string> vocabulary(listed.size());  // typed text never becomes a special token
    words_.reserve(listed.size());
    std::vector<std::size_t> phrases;
    for (std::size_t id = 0; id < listed.size(); id++) {
        const std::string& word = listed[id].as_string("a token");
        if (words_.find(word) != WordTable::kAbsent)
            throw BadInput("the vocabulary has a token twice, expected each once; train again");
        if (id < std::size(kSpecial)) continue;
        if (word.empty())
            throw BadInput("the vocabulary has an empty token; train again");
        words_.put(word, static_cast<std::int32_t>(id));
        vocabulary[id] = word;
        if (word.find(' ') != std::string::npos) phrases.push_back(id);
    }
    for (const std::size_t id : phrases) {
        const std::string& phrase = vocabulary[id];
        const std::size_t space = phrase.find(' ');
        const std::int32_t first = words_.find(std::string_view(phrase).substr(0, space));
        const std::int32_t second = words_.find(std::string_view(phrase).substr(space + 1));
        if (first == WordTable::kAbsent || second == WordTable::kAbsent)
            throw BadInput("the vocabulary has a phrase of an unknown word; train again");
        const auto pair = static_cast<std::uint64_t>(first) << 32 | static_cast<std::uint32_t>(second);
        phrase_of_.emplace(pair, static_cast<std::int32_t>(id));
    }
    return vocabulary;
}

bool Tokenizer::encode(std::string_view utf8, int most, std::vector<std::int32_t>& ids,
                       Words* words) const {
    const std::size_t first = kHeadBytes * static_cast<std::size_t>(most);
    const std::size_t head = utf8.size() > first ? head_of(utf8, first) : utf8.size();
    for (const std::size_t size : {head, utf8.size()}) {
        Ids found(*this, ids, most);
        read(utf8.substr(0, size), found, most);
        const bool cut = found.full();
        if (!cut && size != utf8.size()) continue;
        if (cut) ids.pop_back();
        if (words) *words += found.words();
        return cut;
    }
    return false;
}

void Tokenizer::read(std::string_view utf8, Ids& ids, int most) const {
    thread_local Room room;
    std::uint8_t* const text = room.of(utf8.size());
    text[0] = ' ';
    std::uint8_t* end = characters_.fold(utf8, text + 1);
    *end++ = ' ';
    if (respelling_) {
        int joined = 0;
        end = respelling_->join_spelled_out(text, end, most, words_, joined);
        ids.count_joined(joined);
    }
    std::memset(end, 0, WordKey::kRead);
    // A chunk ends at a separator or a frequent mark, and before the last `!` of several. None of
    // these is a mark of a disguised word but that one; any other mark is split off within a chunk.
    for (const std::uint8_t* at = text; at < end && !ids.full();) {
        if (kKindOf[*at] == Kind::space) {
            at++;
            continue;
        }
        const std::uint8_t* chunk = at;
        for (;; at++) {  // the last byte is a space
            while (!kMayEnd[*at]) at++;
            if (kKindOf[*at] != Kind::bang || kEnds[at[1]]) break;
        }
        if (at == chunk) at++;  // a mark by itself
        read_chunk(chunk, static_cast<std::size_t>(at - chunk), ids);
    }
    room.keep_little();
}

void Tokenizer::read_chunk(const std::uint8_t* chunk, std::size_t length, Ids& ids) const {
    const std::int32_t id = words_.find(chunk, length);
    if (id != WordTable::kAbsent) {
        ids.put(id);
        const std::uint8_t* behind = chunk;
        if (is_word_at(behind, chunk + length)) ids.count(false, false);
        return;
    }
    bool ascii = true, disguises = false;
    for (std::size_t i = 0; i < length; i++) {
        ascii = ascii && chunk[i] < 0x80;
        disguises = disguises || (respelling_ && respelling_->may_disguise(chunk[i]));
    }
    if (ascii && disguises) return read_runs(chunk, length, ids);
    read_tokens(chunk, length, ids);
}

// Step b: runs of what a disguised word is made of, and what is between them.
void Tokenizer::read_runs(const std::uint8_t* chunk, std::size_t length, Ids& ids) const {
    for (std::size_t i = 0; i < length && !ids.full();) {
        const std::size_t start = i++;
        const bool kind = respelling_->in_run(chunk[start]);
        while (i < length && respelling_->in_run(chunk[i]) == kind) i++;
        const std::uint8_t* run = chunk + start;
        const Disguise found = respelling_->disguised(run, i - start, words_);
        if (found.id == WordTable::kAbsent) {
            read_tokens(run, i - start, ids);
            continue;
        }
        read_tokens(run, found.start, ids);
        ids.put(found.id);
        ids.count(false, true);
        read_tokens(run + found.end, i - start - found.end, ids);
    }
}

// Step 2 within a chunk, and step 3 for each token.
void Tokenizer::read_tokens(const std::uint8_t* text, std::size_t length, Ids& ids) const {
    const std::uint8_t *at = text, *end = text + length;
    while (at < end && !ids.full()) {
        const std::uint8_t* token = at;
        bool ascii = *at < 0x80, word = is_word_at(at, end);
        while (word && at < end) {
            const std::uint8_t* next = at;
            if (!is_word_at(next, end)) break;
            ascii = ascii && *at < 0x80;
            at = next;
        }
        const auto size = static_cast<std::size_t>(at - token);
        const std::int32_t id = words_.find(token, size);
        std::array<std::int32_t, kMostLetters> read;
        int several = 0;
        if (id == WordTable::kAbsent && word && respelling_)
            several = respelling_->read_unknown(token, size, ascii, words_, characters_, read);
        if (!several) ids.put(id == WordTable::kAbsent ? UNK_ID : id);
        for (int i = 0; i < several; i++) ids.put(read[static_cast<std::size_t>(i)]);
        if (word) ids.count(id == WordTable::kAbsent && !several, several > 0);
    }
}

// Whether the code point at `at` is of a word; moves behind it.
bool Tokenizer::is_word_at(const std::uint8_t*& at, const std::uint8_t* end) const {
    if (*at < 0x80) return is_word(*at++);
    return characters_.is_word_point(decode_utf8(at, end));
}

void Tokenizer::split(std::string_view utf8, std::string& tokens) const {
    Room room;
    std::uint8_t* const text = room.of(utf8.size());
    const std::uint8_t* at = text;
    for (const std::uint8_t* end = characters_.fold(utf8, text); at < end;) {
        const std::uint8_t* token = at;
        if (kKindOf[*at] == Kind::space) {
            at++;
            continue;
        }
        const bool word = is_word_at(at, end);
        for (const std::uint8_t* next = at; word && at < end && is_word_at(next, end);) at = next;
        tokens.append(view(token, static_cast<std::size_t>(at - token))) += ' ';
    }
}

}  // namespace toxicity
