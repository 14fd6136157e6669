// Picks the CPU tier once: the best that the CPU has, or the one that LADDERKERN_CPU_ISA names.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "discrepancy.h"
#include "norm.h"
#include "prm.h"
#include "spam.h"

namespace lk {

// The entries of a tier, and its row in the table below.
#define LK_DECLARE_TIER(isa)                                                                                                   \
    namespace isa {                                                                                                            \
    void spam_run(const SpamCall&, int64_t, int64_t);                                                                          \
    void discrepancy_run(const DiscrepancyCall&, DiscrepancyScratch&, int64_t, int64_t);                                       \
    void norm_run(const NormCall&, NormStage, NormScratch&, int64_t, int64_t);                                                 \
    void prm_run(const PrmCall&, int64_t, int64_t);                                                                            \
    }
#define LK_TIER(isa, present) {#isa, present, isa::spam_run, isa::discrepancy_run, isa::norm_run, isa::prm_run}

LK_DECLARE_TIER(baseline)
#ifdef LK_X86_TIERS
LK_DECLARE_TIER(avx2)
LK_DECLARE_TIER(avx512)
#endif

namespace {

struct Tier {
    const char* name;
    bool present;
    SpamRun spam = nullptr;
    DiscrepancyRun discrepancy = nullptr;
    NormRun norm = nullptr;
    PrmRun prm = nullptr;
};

Tier choose() {
    Tier tiers[] = {
#ifdef LK_X86_TIERS
        LK_TIER(avx512, bool(__builtin_cpu_supports("x86-64-v4"))),
        LK_TIER(avx2, bool(__builtin_cpu_supports("x86-64-v3"))),
#endif
        LK_TIER(baseline, true),
    };
    const char* forced = std::getenv("LADDERKERN_CPU_ISA");
    for (const Tier& tier : tiers)
        if (forced && *forced ? tier.name == std::string(forced) : tier.present)
            return tier;
    return {forced, false};
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
NormRun norm_run() { return present_tier().norm; }
PrmRun prm_run() { return present_tier().prm; }

} // namespace lk

// For info(): the tier in use, or null where the forced one cannot serve.
extern "C" __attribute__((visibility("default"))) const char* ladderkern_cpu_isa() {
    return lk::tier().present ? lk::tier().name : nullptr;
}
