/* Threads that work on one call and end with it: nothing outlives a call or has to survive a fork. */
#ifndef MNEMOS_TEAM_H
#define MNEMOS_TEAM_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { MOST_THREADS = 16, SPINS = 4000 };

typedef struct Team Team;
typedef void (*Work)(Team *, int member, void *given);

struct Team {
    atomic_int size; /* 0 until it is known how many threads there are */
    atomic_int arrived, round;
    atomic_int *taken; /* by phase: the next piece of work */
    Work work;
    void *given;
};

typedef struct {
    Team *team;
    int member;
    pthread_t thread;
} Member;

INLINE void rest(int turn) {
    if (turn >= SPINS) {
        sched_yield();
        return;
    }
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Waits for all members. */
static void meet(Team *team) {
    int size = atomic_load_explicit(&team->size, memory_order_relaxed);
    if (size == 1) return;
    int round = atomic_load_explicit(&team->round, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&team->round, 1, memory_order_release);
        return;
    }
    for (int turn = 0; atomic_load_explicit(&team->round, memory_order_acquire) == round; turn++) rest(turn);
}

/* The first of the next `size` pieces of a phase's work: a member that is held up takes fewer. */
INLINE int take(Team *team, int phase, int size) {
    return atomic_fetch_add_explicit(&team->taken[phase], size, memory_order_relaxed);
}

static void *join_in(void *given) {
    Member *member = given;
    Team *team = member->team;
    for (int turn = 0; !atomic_load_explicit(&team->size, memory_order_acquire); turn++) rest(turn);
    team->work(team, member->member, team->given);
    return NULL;
}

/* Runs `work` on up to `threads` threads, this one among them. 0, or -1 when memory is short. */
static int with_team(int threads, int phases, Work work, void *given) {
    Team team = {.work = work, .given = given};
    Member members[MOST_THREADS];
    threads = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
    team.taken = calloc((size_t)phases, sizeof(atomic_int));
    if (!team.taken) return -1;
    int size = 1;
    for (; size < threads; size++) {
        members[size] = (Member){.team = &team, .member = size};
        if (pthread_create(&members[size].thread, NULL, join_in, &members[size])) break;
    }
    atomic_store_explicit(&team.size, size, memory_order_release);
    work(&team, 0, given);
    for (int i = 1; i < size; i++) pthread_join(members[i].thread, NULL);
    free(team.taken);
    return 0;
}

#endif
