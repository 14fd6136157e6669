// Picks the CPU tier once: the best that the CPU has, or the one that LADDERKERN_CPU_ISA names.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "discrepancy.h"
#include "spam.h"

namespace lk {

namespace baseline {
void spam_run(const SpamCall&, int64_t, int64_t);
void discrepancy_run(const DiscrepancyCall&, DiscrepancyScratch&, int64_t, int64_t);
} // namespace baseline
#ifdef LK_X86_TIERS
namespace avx2 {
void spam_run(const SpamCall&, int64_t, int64_t);
void discrepancy_run(const DiscrepancyCall&, DiscrepancyScratch&, int64_t, int64_t);
} // namespace avx2
namespace avx512 {
void spam_run(const SpamCall&, int64_t, int64_t);
void discrepancy_run(const DiscrepancyCall&, DiscrepancyScratch&, int64_t, int64_t);
} // namespace avx512
#endif

namespace {

struct Tier {
    const char* name;
    bool present;
    SpamRun spam;
    DiscrepancyRun discrepancy;
};

Tier choose() {
    Tier tiers[] = {
#ifdef LK_X86_TIERS
        {"avx512", bool(__builtin_cpu_supports("x86-64-v4")), avx512::spam_run, avx512::discrepancy_run},
        {"avx2", bool(__builtin_cpu_supports("x86-64-v3")), avx2::spam_run, avx2::discrepancy_run},
#endif
        {"baseline", true, baseline::spam_run, baseline::discrepancy_run},
    };
    const char* forced = std::getenv("LADDERKERN_CPU_ISA");
    for (const Tier& tier : tiers)
        if (forced && *forced ? tier.name == std::string(forced) : tier.present)
            return tier;
    return {forced, false, nullptr, nullptr};
}

const Tier& tier() {
    static const Tier chosen = choose();
    return chosen;
}

const Tier& present_tier() {
    if (!tier().present)
        throw std::runtime_error(
            std::string("LADDERKERN_CPU_ISA must name a tier of this CPU and build (baseline, avx2, avx512), got ") +
            tier().name);
    return tier();
}

} // namespace

SpamRun spam_run() { return present_tier().spam; }
DiscrepancyRun discrepancy_run() { return present_tier().discrepancy; }

} // namespace lk

// For info(): the tier in use, or null where the forced one cannot serve.
extern "C" __attribute__((visibility("default"))) const char* ladderkern_cpu_isa() {
    return lk::tier().present ? lk::tier().name : nullptr;
}
