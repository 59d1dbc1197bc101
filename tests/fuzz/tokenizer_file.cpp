// Any bytes as a tokenizer file: refused with BadInput, or a tokenizer that reads.
#include <cstdlib>
#include <vector>

#include "errors.h"
#include "tokenizer.h"
#include "tokenizers.h"

using namespace toxicity;

static void read(std::string_view json) {
    try {
        const Tokenizer tokenizer(json);
        std::vector<std::int32_t> ids;
        for (const char* text : {"", "The i d i o t, f*ck $h1t stuuupid É中!!", "\xf4\x8f\xbf\xbf a\xcc\x81"}) {
            tokenizer.encode(text, 8, ids);
            if (ids.empty() || ids.size() > 8) std::abort();
            for (const std::int32_t id : ids)
                if (id < 1 || id >= tokenizer.vocabulary_size()) std::abort();
        }
    } catch (const BadInput&) {
    }
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    read(bytes);
    // Its own bytes in place of some of a file that is right, which goes deeper.
    static const std::string whole = tokenizer_json(true, kWords, 16);
    if (size < 3) return 0;
    std::string spliced = whole;
    const std::size_t at = static_cast<std::size_t>(data[0] << 8 | data[1]) % whole.size();
    const std::size_t length = data[2] % 32;
    spliced.replace(at, length, bytes.substr(3, 64));
    read(spliced);
    return 0;
}
