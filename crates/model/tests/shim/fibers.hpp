// Runs the threads of one block on one CPU thread: each is a fiber, and a fiber that waits at a barrier lets the others run.
//
// Stricter than a GPU: every thread of a block (or warp) has to come to each of its barriers, so that one behind a branch
// is found. Threads run one after the other from barrier to barrier, in either order, so that one that reads what another
// has yet to write reads the wrong value in one of the two orders.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>
#include <csetjmp>
#include <ucontext.h>

namespace fibers {

constexpr size_t STACK = 128 << 10;
constexpr unsigned WARP_SIZE = 32;

// Where some threads wait for the rest of their number.
struct Barrier {
    unsigned members = 0, arrived = 0, passed = 0;
};

// A context is for its stack alone: `swapcontext` asks the system for the signal mask each time, a jump costs nothing.
struct Fiber {
    ucontext_t context;
    jmp_buf jump;
    unsigned index = 0;
    bool started = false;
    bool done = false;
    const Barrier *at = nullptr;
    unsigned seen = 0;
};

struct Block {
    jmp_buf scheduler;
    std::vector<Fiber> fibers;
    std::vector<char> stacks;
    std::vector<Barrier> warps;
    Barrier all;
    // What the lanes of each warp show each other, twice: one that is ahead must not overwrite what is still read.
    std::vector<uint64_t> shown[2];
    std::vector<unsigned> turn;
    void (*body)(void *) = nullptr;
    void *argument = nullptr;
    Fiber *current = nullptr;
};

inline thread_local Block block;

inline void enter() {
    block.body(block.argument);
    block.current->done = true;
    _longjmp(block.scheduler, 1);
}

// Goes on with a fiber until it waits or ends.
__attribute__((noinline)) inline void resume(Fiber *fiber) {
    block.current = fiber;
    if (_setjmp(block.scheduler) != 0) return;
    if (fiber->started) _longjmp(fiber->jump, 1);
    fiber->started = true;
    setcontext(&fiber->context);
}

__attribute__((noinline)) inline void yield(Fiber *self) {
    if (_setjmp(self->jump) == 0) _longjmp(block.scheduler, 1);
}

// Waits until all members have come.
inline void wait(Barrier &barrier) {
    Fiber *self = block.current;
    if (++barrier.arrived == barrier.members) {
        barrier.arrived = 0;
        barrier.passed++;
        return;
    }
    self->at = &barrier;
    self->seen = barrier.passed;
    yield(self);
    self->at = nullptr;
}

inline Barrier &warp_barrier() { return block.warps[block.current->index / WARP_SIZE]; }

inline void wait_block() { wait(block.all); }
inline void wait_warp() { wait(warp_barrier()); }

// Shows a value to the warp; afterwards, until the next call, `shown(lane)` is that of another lane.
inline const uint64_t *show(uint64_t value) {
    const unsigned self = block.current->index;
    const unsigned turn = block.turn[self]++ % 2;
    block.shown[turn][self] = value;
    wait_warp();
    return &block.shown[turn][self / WARP_SIZE * WARP_SIZE];
}

// Runs `body` as each of `threads` threads. False if some wait where the others never come.
inline bool run(unsigned threads, bool backwards, void (*body)(void *), void *argument) {
    block.fibers.resize(threads);
    block.stacks.resize(threads * STACK);
    block.warps.assign((threads + WARP_SIZE - 1) / WARP_SIZE, Barrier());
    for (unsigned i = 0; i < block.warps.size(); i++) {
        const unsigned rest = threads - i * WARP_SIZE;
        block.warps[i].members = rest < WARP_SIZE ? rest : WARP_SIZE;
    }
    block.all = Barrier();
    block.all.members = threads;
    for (auto &shown : block.shown) shown.assign(block.warps.size() * WARP_SIZE, 0);
    block.turn.assign(threads, 0);
    block.body = body;
    block.argument = argument;
    for (unsigned i = 0; i < threads; i++) {
        Fiber &fiber = block.fibers[i];
        fiber.index = i;
        fiber.done = fiber.started = false;
        fiber.at = nullptr;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = &block.stacks[i * STACK];
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, enter, 0);
    }
    for (unsigned left = threads; left > 0;) {
        bool moved = false;
        for (unsigned i = 0; i < threads; i++) {
            Fiber &fiber = block.fibers[backwards ? threads - 1 - i : i];
            if (fiber.done || (fiber.at && fiber.at->passed == fiber.seen)) continue;
            moved = true;
            resume(&fiber);
            left -= fiber.done;
        }
        if (!moved) return false;
    }
    return true;
}

} // namespace fibers
