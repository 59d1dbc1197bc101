// Any text through the whole rule: ids within the vocabulary, as many as fit, the same twice.
#include <cstdlib>
#include <vector>

#include "contract.h"
#include "tokenizer.h"
#include "tokenizers.h"
#include "utf8.h"

using namespace toxicity;

static void check(const Tokenizer& tokenizer, std::string_view text, int most) {
    std::vector<std::int32_t> ids, again;
    const bool cut = tokenizer.encode(text, most, ids);
    if (ids.empty() || ids.size() > static_cast<std::size_t>(most) || ids[0] != CLS_ID) std::abort();
    for (const std::int32_t id : ids)
        if (id < 1 || id >= tokenizer.vocabulary_size()) std::abort();
    if (tokenizer.encode(text, most, again) != cut || ids != again) std::abort();
    if (cut && ids.size() != static_cast<std::size_t>(most)) std::abort();
    // More room changes nothing of what fitted; a phrase may join the last one with the next.
    tokenizer.encode(text, most + 8, again);
    if (cut && again.size() < ids.size()) std::abort();
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Tokenizer respelling(tokenizer_json(true, kWords, 16));
    static const Tokenizer plain(tokenizer_json(false, kWords, 5));
    if (!size) return 0;
    const int most = 1 + data[0] % 64;
    const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
    if (invalid_utf8_at(text, true) != kValid) return 0;
    check(respelling, text, most);
    check(plain, text, most);
    std::string tokens;
    plain.split(text, tokens);
    if (tokens.size() > 2 * text.size() + 1) std::abort();
    if (invalid_utf8_at(tokens, true) != kValid) std::abort();
    return 0;
}
