/* Every handle of shmserve.hpp against the echo policy; ends with 0 if all behave, and else says what does not.
 *
 *     handles RUNTIME_DIR SERVICE
 */

#include <shmserve.hpp>

#include <array>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>
#if __cplusplus >= 202002L
#include <span>
#endif

using shmserve::Status;

namespace {

int faults = 0;

void check(bool holds, const char *what)
{
    faults += !holds;
    if (!holds)
        std::printf("not so: %s\n", what);
}

bool contains(const char *text, const char *part) { return std::string(text).find(part) != std::string::npos; }

constexpr std::uint64_t second_ns = 1'000'000'000;

std::uint64_t soon() { return shmserve::now_ns() + 20 * second_ns; }

template <class T> void one_dtype(shmserve::Client &client, const char *what, T first, T second)
{
    auto schema = client.declare({shmserve::array<T>("x", {2})}).value();
    auto loan = client.loan(schema);
    check(loan.has_value(), what);
    auto items = loan->template span<T>("x", 2);
    check(items.has_value() && items->size() == 2, what);
    (*items)[0] = first;
    (*items)[1] = second;
    auto reply = loan->ask(soon());
    check(reply.has_value(), reply ? what : reply.error().text);
    using Read = std::conditional_t<std::is_same_v<T, bool>, std::uint8_t, T>;
    auto echoed = reply->template span<Read>("x", 2);
    check(echoed && std::memcmp(echoed->data(), &first, sizeof first) == 0, what);
    check(echoed && std::memcmp(&(*echoed)[1], &second, sizeof second) == 0, what);
}

void every_kind(shmserve::Client &client)
{
    auto schema = client
                      .declare({shmserve::array<float>("joints", {2, 3}), shmserve::text("task"),
                                shmserve::bytes("blob"), shmserve::integer("step"), shmserve::number("gain"),
                                shmserve::truth("grip"), shmserve::list<double>("weights")})
                      .value();
    check(schema.entries().size() == 7 && schema.sizes() == 5, "entries and sizes of a structure");
    const std::vector<float> joints = {1, 2, 3, 4, 5, 6};
    const std::vector<double> weights = {0.5, 0.25};
    const std::array<std::byte, 3> blob = {std::byte{1}, std::byte{0}, std::byte{255}};
    std::vector<std::uint64_t> sizes = {2, 3, 4, blob.size(), weights.size()};
    auto loan = client.loan(schema, sizes);
    check(loan && loan->copy("joints", joints.data(), joints.size()) && loan->copy("task", std::string_view("lift")) &&
              loan->copy("blob", blob.data(), blob.size()) && loan->set("step", std::int64_t{-7}) &&
              loan->set("gain", 0.125) && loan->set("grip", std::int64_t{1}) &&
              loan->copy("weights", weights.data(), weights.size()),
          "every kind can be written");
    auto reply = loan->ask(soon());
    check(reply.has_value(), "every kind is answered");
    shmserve::Field<float> field("joints", 6);
    auto echoed = reply->span_of(field);
    check(echoed && std::vector<float>(echoed->begin(), echoed->end()) == joints, "an array");
    check(reply->info().views[0].shape[0] == 2 && reply->info().views[0].shape[1] == 3, "its shape");
#if __cplusplus >= 202002L
    std::span<const float> standard = *echoed;
    check(standard.size() == 6 && standard[5] == 6.0F, "a std::span");
#endif
    check(reply->text("task") && *reply->text("task") == "lift", "a text");
    check(reply->span<std::byte>("blob") && (*reply->span<std::byte>("blob"))[2] == std::byte{255}, "bytes");
    check(reply->get<std::int64_t>("step") && *reply->get<std::int64_t>("step") == -7, "an int");
    check(reply->get<double>("gain") && *reply->get<double>("gain") == 0.125, "a float");
    check(reply->get<std::int64_t>("grip") && *reply->get<std::int64_t>("grip") == 1, "a bool");
    check(reply->span<double>("weights") && (*reply->span<double>("weights"))[1] == 0.25, "a list");
    check(reply->info().model_version != 0, "the model's version");

    auto absent = reply->span<float>("legs");
    check(absent.status() == Status::mismatch && contains(absent.error().text, "no entry 'legs'"),
          "an entry that is not there");
    auto other = reply->span<double>("joints");
    check(other.status() == Status::mismatch && contains(other.error().text, "'joints'"), "another dtype");
    auto fewer = reply->span<float>("joints", 7);
    check(fewer.status() == Status::mismatch && contains(fewer.error().text, "24 bytes; 7 items"), "another count");
    shmserve::Field<float> moved("task");
    check(reply->span_of(moved).status() == Status::mismatch, "a text is no array of floats");
    check(client.loan(schema, shmserve::span<const std::uint64_t>(sizes.data(), 2)).status() == Status::mismatch,
          "too few sizes");
}

void handles_give_back(shmserve::Client &client)
{
    auto schema = client.declare({shmserve::integer("n")}).value();
    for (int round = 0; round < 20; round++) {
        /* Each of these holds a slot of two until its block is left. */
        auto unsent = client.loan(schema);
        check(unsent.has_value(), "a loan that is not sent is given back");
        auto taken = shmserve::Loan(std::move(*unsent));
        check(taken.set("n", std::int64_t{round}).has_value(), "a loan can be moved");
        auto pending = taken.publish();
        check(pending.has_value(), "a request is sent");
        auto held = pending->wait(soon());
        check(held && *held->get<std::int64_t>("n") == round, "its reply is its own");
        auto reply = shmserve::Reply(std::move(*held));
        check(*reply.get<std::int64_t>("n") == round, "a reply can be moved");
    }
    auto first = client.loan(schema), second = client.loan(schema), third = client.loan(schema);
    check(first && second && third.status() == Status::exhausted, "a third slot of two");
    check(contains(third.error().text, "every slot of"), "its text");
    first->give_back();
    check(client.loan(schema).has_value(), "a slot that was given back");
    first = client.loan(schema);
    check(first.has_value(), "a handle that is assigned to");
    check(first->set("n", std::int64_t{1}).has_value(), "it is filled");
    {
        auto pending = first->publish();
        check(pending->wait(0).status() == Status::timeout || pending->sequence() == 0, "a look");
    } /* abandoned, unless it was answered */
    second->give_back();
    check(client.reset(soon()).has_value(), "the policy is reset");
    shmserve_terms late{};
    late.capture_ns = shmserve::now_ns() - second_ns;
    late.max_age_ns = 1;
    auto stale = client.loan(schema);
    check(stale && stale->set("n", std::int64_t{1}) && stale->ask(soon(), late).status() == Status::stale,
          "an old observation");
}

void views_outlive_the_client(const shmserve::Options &options)
{
    auto client = std::make_unique<shmserve::Client>(shmserve::Client::open(options, 20 * second_ns).value());
    auto schema = client->declare({shmserve::integer("n")}).value();
    auto loan = client->loan(schema);
    check(loan->set("n", std::int64_t{5}).has_value(), "it is filled");
    auto reply = loan->ask(soon());
    client.reset();
    check(reply && *reply->get<std::int64_t>("n") == 5, "a reply keeps its client open");
}

void a_robot_s_statement(shmserve::Options options)
{
    auto opened = [](auto *given) -> decltype(shmserve_open(nullptr, given, 0)) { return 0; };
    static_assert(std::is_invocable_v<decltype(opened), const shmserve_options *>);
    static_assert(!std::is_invocable_v<decltype(opened), const shmserve::Options *>, "it would not see `robot`");
    options.robot = "{\"rate_hz\": 50}";
    shmserve::Options copied = options;
    options.robot = "{\"rate\": 50}";
    auto invalid = shmserve::Client::open(options, 20 * second_ns);
    check(invalid.status() == Status::argument && contains(invalid.error().text, "robot has no key 'rate'"),
          "a statement that has no meaning");
    auto client = shmserve::Client::open(copied, 20 * second_ns).value();
    auto loan = client.loan(client.declare({shmserve::integer("n")}).value());
    check(loan->set("n", std::int64_t{5}) && loan->ask(soon()), "a robot that agrees");
}

} // namespace

int main(int count, char **arguments)
{
    if (count != 3)
        return 2;
    shmserve::Options options;
    options.runtime_dir = arguments[1];
    options.service = "nobody";
    options.max_retries = 0;
    auto nobody = shmserve::Client::open(options, second_ns);
    check(nobody.status() == Status::unavailable && contains(nobody.error().text, "no daemon serves 'nobody'"),
          "no service");
    options.slots = 100;
    check(shmserve::Client::open(options, second_ns).status() == Status::argument, "options that make no sense");
    options.slots = 2;
    options.service = arguments[2];
    auto client = shmserve::Client::open(options, 20 * second_ns).value();
    check(client.alive() && client.expect(0) && client.stats().attached == 1, "an attached client");
    check(client.describe(second_ns).value().find("\"model\"") != std::string::npos, "its description");

    one_dtype<bool>(client, "bool", true, false);
    one_dtype<std::int8_t>(client, "int8", -1, 2);
    one_dtype<std::uint8_t>(client, "uint8", 255, 2);
    one_dtype<std::int16_t>(client, "int16", -300, 2);
    one_dtype<std::uint16_t>(client, "uint16", 65535, 2);
    one_dtype<shmserve::float16>(client, "float16", {0x3c00}, {0});
    one_dtype<shmserve::bfloat16>(client, "bfloat16", {0x3f80}, {0});
    one_dtype<std::int32_t>(client, "int32", -70000, 2);
    one_dtype<std::uint32_t>(client, "uint32", 4000000000, 2);
    one_dtype<float>(client, "float32", -0.5F, 2);
    one_dtype<std::int64_t>(client, "int64", INT64_MIN, 2);
    one_dtype<std::uint64_t>(client, "uint64", UINT64_MAX, 2);
    one_dtype<double>(client, "float64", -0.1, 2);
    one_dtype<std::complex<float>>(client, "complex64", {1, 2}, {3, 4});
    one_dtype<std::complex<double>>(client, "complex128", {1, 2}, {3, 4});
    every_kind(client);
    handles_give_back(client);
    views_outlive_the_client(options);
    a_robot_s_statement(options);
    std::printf("%s\n", faults == 0 ? "all hold" : "faults");
    return faults != 0;
}
