// Memory that ends where a page begins that nobody may touch: a kernel that reaches beyond its memory ends the program.
#pragma once
#include <csignal>
#include <cstdint>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>

namespace guarded {

inline const char *volatile kernel = "";

inline void report(int) {
    const char *parts[] = {"\na kernel reached beyond its memory: ", kernel, "\n"};
    for (const char *part : parts) (void)!write(2, part, strlen(part));
    _exit(99);
}

// A guarded block of `bytes`, its end at most 15 bytes before the guard.
inline void *allocate(size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), room = (bytes + page - 1) / page * page;
    char *base = static_cast<char *>(mmap(nullptr, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base == MAP_FAILED) return nullptr;
    if (room > 0 && mprotect(base + page, room, PROT_READ | PROT_WRITE) != 0) return nullptr;
    return base + page + (room - (bytes + 15) / 16 * 16);
}

inline void release(void *block, size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE)), room = (bytes + page - 1) / page * page;
    char *base = static_cast<char *>(block) - (room - (bytes + 15) / 16 * 16) - page;
    munmap(base, room + 2 * page);
}

} // namespace guarded

extern "C" void *guarded_allocate(size_t bytes) { return guarded::allocate(bytes); }
extern "C" void guarded_release(void *block, size_t bytes) { guarded::release(block, bytes); }
extern "C" void guarded_name(const char *kernel) {
    guarded::kernel = kernel;
    struct sigaction action = {};
    action.sa_handler = guarded::report;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
}
