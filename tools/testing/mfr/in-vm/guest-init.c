// SPDX-License-Identifier: GPL-2.0
/*
 * The first process of the guest that make run GUEST=linux runs, and its load: workers
 * with memory full of numbers, which they check all the time. Each says where a page of
 * it is, for that page to be hit:
 *
 *	aim PHYSICAL-ADDRESS WORKER
 *
 * A lost page kills its worker, except the one with a handler for SIGBUS, which computes
 * its numbers anew. The host writes a line when it has healed the lost pages. Some rounds
 * later the survivors have checked everything once more, and the guest powers off.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE	4096UL
#define SIZE	(16UL << 20)
#define WORDS	(SIZE / 8)
#define LATER	5	/* rounds */

enum { STAYS, DIES, DIES_TOO, REBUILDS, WORKERS };

/* Shared by all of them */
static volatile struct {
	unsigned long rounds;	/* that its numbers were right */
	unsigned long wrong;	/* numbers */
	int rebuilt;		/* pages */
	int stop;
} *worker;
static int self;
static uint64_t *numbers;

static uint64_t number(unsigned long i)
{
	return (i + 1) * (2 * self + 1) * 0x9e3779b97f4a7c15UL;
}

static void fill(unsigned long from, unsigned long to)
{
	for (unsigned long i = from; i < to; i++)
		numbers[i] = number(i);
}

static void rebuild(int sig, siginfo_t *si, void *context)
{
	char *page = (char *)((uintptr_t)si->si_addr & -PAGE);
	unsigned long first = (uint64_t *)page - numbers;

	(void)sig;
	(void)context;
	if (first >= WORDS || mmap(page, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE |
				   MAP_ANONYMOUS | MAP_FIXED, -1, 0) != page)
		_exit(1);
	fill(first, first + PAGE / 8);
	worker[self].rebuilt++;
}

static void work(void)
{
	struct sigaction sa = { .sa_sigaction = rebuild, .sa_flags = SA_SIGINFO };
	uint64_t entry = 0;
	char *middle;
	int fd;

	numbers = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		       -1, 0);
	if (numbers == MAP_FAILED)
		_exit(1);
	fill(0, WORDS);
	middle = (char *)numbers + SIZE / 2;
	fd = open("/proc/self/pagemap", O_RDONLY);
	pread(fd, &entry, 8, (uintptr_t)middle / PAGE * 8);
	if (self != STAYS)
		printf("aim %#lx %d\n", (entry & ((1UL << 55) - 1)) * PAGE, self);
	if (self == REBUILDS)
		sigaction(SIGBUS, &sa, NULL);

	while (!worker[self].stop) {
		for (unsigned long i = 0; i < WORDS; i++)
			worker[self].wrong += numbers[i] != number(i);
		worker[self].rounds++;
	}
	_exit(0);
}

int main(void)
{
	unsigned long total = 0, wrong = 0, round = 0, last = -1UL;
	int pid[WORKERS], told = 0, alive = WORKERS, i, status;
	struct pollfd host = { .events = POLLIN };

	setvbuf(stdout, NULL, _IOLBF, 0);
	mkdir("/proc", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	worker = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	for (i = 0; i < WORKERS; i++) {
		self = i;
		pid[i] = fork();
		if (!pid[i])
			work();
	}

	/* The end is LATER rounds of the first worker after the host's line. */
	for (; round <= last || last == -1UL; sleep(1)) {
		for (i = 0; i < WORKERS; i++) {
			if (pid[i] && waitpid(pid[i], &status, WNOHANG) == pid[i]) {
				printf("worker %d died of signal %d, %s\n", i,
				       WTERMSIG(status), strsignal(WTERMSIG(status)));
				pid[i] = 0;
				alive--;
			}
		}
		if (worker[REBUILDS].rebuilt > told) {
			told = worker[REBUILDS].rebuilt;
			printf("worker %d lost a page and has made its numbers anew\n",
			       REBUILDS);
		}
		round = worker[STAYS].rounds;
		if (last == -1UL && poll(&host, 1, 0) > 0)
			last = round + LATER;
		for (i = 0, wrong = 0; i < WORKERS; i++)
			wrong += worker[i].wrong;
		printf("alive: %d workers, pages lost: %d, round %lu, %lu wrong numbers\n", alive,
		       WORKERS - alive + told, round, wrong);
	}
	for (i = 0, wrong = 0; i < WORKERS; i++) {
		worker[i].stop = 1;
		if (pid[i])
			waitpid(pid[i], &status, 0);
		total += worker[i].rounds * WORDS;
		wrong += worker[i].wrong;
	}
	printf("the end: %lu numbers checked, %lu were wrong\n", total, wrong);
	reboot(RB_POWER_OFF);
}
