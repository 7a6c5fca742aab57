/* blocks.cpp - runs the blocks of a launch: one after another, the threads of each as fibers on one thread of the host.
 *
 * A fiber runs until it waits: at a barrier for the whole block, at an exchange for the lanes of its mask. What a device may leave
 * undefined is an error here, named with its line: threads of a block at different barriers, or gone while others wait; lanes of a
 * warp at different operations; writes past the shared memory; more of it than there is. Shared memory begins as NaN. Odd blocks run
 * their threads from the last to the first, so that a missing barrier shows in one order or the other. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <mutex>
#include <unordered_map>
#include <vector>

#include "host.h"

#ifndef __x86_64__
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_host {
namespace {

constexpr size_t STACK = 256 << 10, PAGE = 4096, GUARD = 256, STATIC_LIMIT = 48 << 10, SHARED_LIMIT = 227 << 10;
constexpr unsigned char GUARD_BYTE = 0xc5;
constexpr int MAX_THREADS = 1024, MAX_MASKS = 8;

enum State { READY, AT_BARRIER, AT_EXCHANGE, DONE };

struct Fiber {
    uint3 thread;
    int votes; /* taken part in */
    State state;
    Where at;
#ifdef __x86_64__
    void *stack_pointer;
#else
    ucontext_t context;
#endif
};

/* A meeting of the lanes of one mask. A lane is at most one meeting ahead of the slowest, hence two buffers. */
struct Exchange {
    unsigned mask, arrived, turn;
    Where at;
    char all[2][32][LANE_BYTES];
};

struct Warp { int n; Exchange exchange[MAX_MASKS]; };
struct Variable { char *memory; size_t size; };

struct Block {
    int vote[3];
    int n, current; /* threads, and the one that runs */
    bool failed;
    Fiber fiber[MAX_THREADS];
    Warp warp[MAX_THREADS / 32];
    std::unordered_map<const void *, Variable> variables;
    size_t static_used, dynamic_size;
    char *dynamic;
    std::function<void()> *body;
#ifdef __x86_64__
    void *scheduler;
#else
    ucontext_t scheduler;
#endif
} block;

char message[512];
char *stacks, *statics, *dynamics;
std::mutex one_launch;
std::unordered_map<const void *, size_t> dynamic_allowed; /* by kernel, from cudaFuncSetAttribute */

/* ---- fibers ---- */

void fiber_body() {
    (*block.body)();
    block.fiber[block.current].state = DONE;
}

#ifdef __x86_64__
extern "C" void cuda_host_switch(void **save, void *load);
asm(".text\n.globl cuda_host_switch\n.hidden cuda_host_switch\ncuda_host_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov %rsi, %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

void leave() { cuda_host_switch(&block.fiber[block.current].stack_pointer, block.scheduler); }

[[noreturn]] void fiber_entry() {
    fiber_body();
    leave();
    abort();
}

void prepare(Fiber *f, char *stack) {
    void **top = reinterpret_cast<void **>(stack + STACK) - 1; /* a function begins 8 bytes below a multiple of 16 */
    *--top = reinterpret_cast<void *>(fiber_entry);
    f->stack_pointer = top - 6; /* the registers that the switch takes off */
}

void enter(Fiber *f) { cuda_host_switch(&block.scheduler, f->stack_pointer); }
#else
void leave() { swapcontext(&block.fiber[block.current].context, &block.scheduler); }

void prepare(Fiber *f, char *stack) {
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = stack;
    f->context.uc_stack.ss_size = STACK;
    f->context.uc_link = &block.scheduler;
    makecontext(&f->context, fiber_body, 0);
}

void enter(Fiber *f) { swapcontext(&block.scheduler, &f->context); }
#endif

/* ---- shared memory ---- */

void *reserve(size_t bytes) {
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}

void allocate_once() {
    if (stacks) return;
    stacks = static_cast<char *>(reserve(MAX_THREADS * STACK));
    for (int i = 0; i < MAX_THREADS; i++) mprotect(stacks + static_cast<size_t>(i) * STACK, PAGE, PROT_NONE);
    statics = static_cast<char *>(reserve(2 * SHARED_LIMIT));
    dynamics = static_cast<char *>(reserve(2 * SHARED_LIMIT));
}

void guard(char *memory, size_t size) {
    memset(memory, 0xff, size); /* NaN in every format */
    memset(memory + size, GUARD_BYTE, GUARD);
}

bool intact(const char *memory, size_t size) {
    for (size_t i = 0; i < GUARD; i++)
        if (static_cast<unsigned char>(memory[size + i]) != GUARD_BYTE) return false;
    return true;
}

/* ---- one block ---- */

void set_failure(const char *format, va_list args) {
    if (!block.failed) vsnprintf(message, sizeof message, format, args);
    block.failed = true;
}

void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
void note(const char *format, ...) {
    va_list args;
    va_start(args, format);
    set_failure(format, args);
    va_end(args);
}

/* Nothing can run: all threads are done, all are at one barrier, or the kernel is wrong. Whether to go on. */
bool release() {
    int done = 0;
    const Fiber *first = nullptr;
    for (int i = 0; i < block.n; i++) {
        const Fiber &f = block.fiber[i];
        if (f.state == DONE) done++;
        else if (f.state == AT_EXCHANGE)
            return note("%s:%d: thread %d waits for lanes of its warp that never come", f.at.file, f.at.line, i), false;
        else if (!first) first = &f;
        else if (f.at.line != first->at.line || strcmp(f.at.file, first->at.file))
            return note("threads of one block wait at different barriers: %s:%d and %s:%d", first->at.file, first->at.line, f.at.file, f.at.line), false;
    }
    if (done == block.n) return false;
    if (done) return note("%s:%d: %d threads of the block are gone when the others wait at a barrier", first->at.file, first->at.line, done), false;
    for (int i = 0; i < block.n; i++) block.fiber[i].state = READY;
    return true;
}

void run_fibers(bool backwards) {
    for (bool more = true; more && !block.failed;) {
        bool ran = false;
        for (int k = 0; k < block.n && !block.failed; k++) {
            int i = backwards ? block.n - 1 - k : k;
            if (block.fiber[i].state != READY) continue;
            block.current = i;
            threadIdx = block.fiber[i].thread;
            enter(&block.fiber[i]);
            ran = true;
        }
        if (!ran) more = release();
    }
}

void check_shared_memory() {
    for (const auto &v : block.variables)
        if (!intact(v.second.memory, v.second.size)) note("a shared variable of %zu bytes was written past its end", v.second.size);
    if (!intact(block.dynamic, block.dynamic_size)) note("the %zu bytes of dynamic shared memory were written past their end", block.dynamic_size);
    if (!intact(block.dynamic - GUARD, 0)) note("dynamic shared memory was written before its start");
    if (block.static_used + block.dynamic_size > SHARED_LIMIT)
        note("a block needs %zu bytes of shared memory; there are %zu", block.static_used + block.dynamic_size, SHARED_LIMIT);
}

void run_block(const Shape &shape, uint3 at) {
    block.variables.clear();
    block.static_used = 0;
    block.vote[0] = block.vote[1] = block.vote[2] = 0;
    block.dynamic_size = shape.shared_bytes;
    block.dynamic = dynamics + PAGE;
    memset(block.dynamic - GUARD, GUARD_BYTE, GUARD);
    guard(block.dynamic, block.dynamic_size);
    for (int i = 0; i < block.n; i++) {
        unsigned u = static_cast<unsigned>(i), x = shape.block.x, y = shape.block.y;
        Fiber &f = block.fiber[i];
        f.thread = {u % x, u / x % y, u / x / y};
        f.votes = 0;
        f.state = READY;
        prepare(&f, stacks + static_cast<size_t>(i) * STACK);
    }
    for (int i = 0; i < (block.n + 31) / 32; i++) block.warp[i].n = 0;
    blockIdx = at;
    blockDim = shape.block;
    gridDim = shape.grid;
    run_fibers((at.x + at.y + at.z) % 2);
    if (!block.failed) check_shared_memory();
}

bool check_shape(const Shape &s) {
    size_t threads = static_cast<size_t>(s.block.x) * s.block.y * s.block.z, allowed = STATIC_LIMIT;
    if (!threads || threads > MAX_THREADS) note("a block of %u x %u x %u threads", s.block.x, s.block.y, s.block.z);
    if (!s.grid.x || !s.grid.y || !s.grid.z || s.grid.x > 0x7fffffffu || s.grid.y > 65535 || s.grid.z > 65535)
        note("a grid of %u x %u x %u blocks", s.grid.x, s.grid.y, s.grid.z);
    auto found = dynamic_allowed.find(s.kernel);
    if (found != dynamic_allowed.end()) allowed = found->second;
    if (s.shared_bytes > allowed) note("%zu bytes of dynamic shared memory where %zu were asked for", s.shared_bytes, allowed);
    block.n = static_cast<int>(threads);
    return !block.failed;
}

} // namespace

/* ---- what kernels call ---- */

void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    set_failure(format, args);
    va_end(args);
    leave(); /* nobody comes back to a failed block */
    abort();
}

void barrier(Where at) {
    Fiber &f = block.fiber[block.current];
    f.state = AT_BARRIER;
    f.at = at;
    leave();
}

/* Two turns of three: nobody clears a vote before all have read it. */
int barrier_or(int yes, Where at) {
    Fiber &f = block.fiber[block.current];
    int turn = f.votes++ % 3;
    block.vote[(turn + 1) % 3] = 0;
    block.vote[turn] |= yes != 0;
    barrier(at);
    return block.vote[turn];
}

int lane_id() { return block.current % 32; }

const char *lane(const char *all, int i) { return all + static_cast<size_t>(i) * LANE_BYTES; }

static Exchange *meeting(Warp *w, unsigned mask, Where at) {
    for (int i = 0; i < w->n; i++)
        if (w->exchange[i].mask == mask) return &w->exchange[i];
    if (w->n == MAX_MASKS) fail("%s:%d: more than %d different masks in one warp", at.file, at.line, MAX_MASKS);
    Exchange *e = &w->exchange[w->n++];
    e->mask = mask;
    e->arrived = e->turn = 0;
    return e;
}

const char *exchange(unsigned mask, const void *mine, size_t size, Where at) {
    unsigned self = 1u << lane_id();
    int first = block.current / 32 * 32, lanes = block.n - first < 32 ? block.n - first : 32;
    if (!(mask & self)) fail("%s:%d: lane %d calls with a mask it is not in", at.file, at.line, lane_id());
    if (lanes < 32 && mask >> lanes) fail("%s:%d: the mask %08x names lanes that the last warp does not have", at.file, at.line, mask);
    if (size > LANE_BYTES) fail("%s:%d: %zu bytes a lane; at most %zu", at.file, at.line, size, LANE_BYTES);
    Exchange *e = meeting(&block.warp[block.current / 32], mask, at);
    if (!e->arrived) e->at = at;
    else if (e->at.line != at.line || strcmp(e->at.file, at.file))
        fail("lanes of one warp are at different operations: %s:%d and %s:%d", e->at.file, e->at.line, at.file, at.line);
    char (*all)[LANE_BYTES] = e->all[e->turn & 1];
    memcpy(all[lane_id()], mine, size);
    e->arrived |= self;
    if (e->arrived == mask) {
        e->arrived = 0;
        e->turn++;
        for (int i = 0; i < lanes; i++)
            if (mask >> i & 1) block.fiber[first + i].state = READY;
    } else {
        Fiber &f = block.fiber[block.current];
        f.state = AT_EXCHANGE;
        f.at = at;
        leave();
    }
    return all[0];
}

void *shared_variable(const void *tag, size_t size) {
    auto found = block.variables.find(tag);
    if (found != block.variables.end()) return found->second.memory;
    char *memory = statics + block.static_used + block.variables.size() * GUARD;
    block.static_used += (size + 15) & ~static_cast<size_t>(15);
    if (block.static_used > STATIC_LIMIT) fail("%zu bytes of static shared memory; at most %zu", block.static_used, STATIC_LIMIT);
    guard(memory, size);
    block.variables[tag] = {memory, size};
    return memory;
}

void *dynamic_shared() { return block.dynamic; }

/* ---- a launch ---- */

void allow_dynamic(const void *kernel, size_t bytes) {
    std::lock_guard<std::mutex> lock(one_launch);
    dynamic_allowed[kernel] = bytes;
}

const char *run(const Shape &shape, std::function<void()> *body) {
    std::lock_guard<std::mutex> lock(one_launch);
    allocate_once();
    block.failed = false;
    block.body = body;
    if (!check_shape(shape)) return message;
    for (unsigned z = 0; z < shape.grid.z && !block.failed; z++)
        for (unsigned y = 0; y < shape.grid.y && !block.failed; y++)
            for (unsigned x = 0; x < shape.grid.x && !block.failed; x++) run_block(shape, {x, y, z});
    return block.failed ? message : nullptr;
}

} // namespace cuda_host
