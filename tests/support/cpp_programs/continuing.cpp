/* Executes chunks of the policy "continued" and prints each row with what its request had: one step a line.
 *
 *     continuing RUNTIME_DIR SERVICE STEPS
 *
 * Steps are counted, and wait for their chunks.
 */

#include <shmserve_action_chunks.hpp>

#include <cstdio>
#include <cstdlib>

int main(int count, char **arguments)
{
    constexpr std::uint32_t width = 6;
    if (count != 4)
        return 2;
    shmserve::Options options;
    options.runtime_dir = arguments[1];
    options.service = arguments[2];
    auto client = shmserve::Client::open(options, 60'000'000'000).value();
    auto schema = client
                      .declare({shmserve::integer("step"), shmserve::array<float>("joints", {3}),
                                shmserve::integer("inference_delay"),
                                shmserve::array<float>("prev_chunk_left_over", {shmserve::any_count, width})})
                      .value();
    shmserve::ChunkOptions rules;
    rules.steps = 8;
    rules.prefetch = 4;
    rules.chunk_rows = 12;
    rules.width = width;
    rules.max_wait_ns = 60'000'000'000;
    rules.fallback = shmserve::Fallback::raise;
    rules.real_time_chunking = true;
    auto chunks = shmserve::ActionChunks<float>::make(std::move(client), schema, rules).value();
    const float joints[3] = {1, 2, 3};
    for (std::int64_t step = 0; step < std::atoll(arguments[3]); step++) {
        auto given = chunks.step([&](shmserve::Loan &loan) {
            (void)loan.set("step", step);
            return loan.copy("joints", joints, 3);
        });
        if (!given) {
            std::fprintf(stderr, "%s\n", given.error().text);
            return 1;
        }
        for (float value : given->action)
            std::printf("%g ", static_cast<double>(value));
        std::printf("%lld\n", static_cast<long long>(given->index));
    }
    return 0;
}
