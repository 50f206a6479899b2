// SPDX-License-Identifier: GPL-2.0
/*
 * hit-memory FILE OFFSET: let an uncorrected memory error hit the page at that offset of
 * the file, which may be /proc/PID/fd/N, while this process reads it: as the back end of
 * a device would that has the guest's memory mapped. See machine_check.h for how.
 */
#define _GNU_SOURCE
#include <err.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "machine_check.h"

static siginfo_t last;

static void on_sigbus(int sig, siginfo_t *si, void *context)
{
	(void)sig;
	(void)context;
	last = *si;
	mce_release_victim();
	printf("what was there is lost already\n");
	exit(1);
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	static const char * const unit[] = { "bytes", "KiB", "MiB", "GiB" };
	int fd, map, monitor = mce_open_monitor(), cpu[2], ret;
	unsigned long offset;
	struct stat st;
	uint64_t entry;
	char *mem;

	if (argc != 3)
		errx(2, "usage: hit-memory FILE OFFSET");
	offset = strtoul(argv[2], NULL, 0);
	if (monitor < 0 || !mce_cpus(cpu))
		errx(1, "no machine checks here");
	fd = open(argv[1], O_RDWR);
	if (fd < 0 || fstat(fd, &st) || offset >= (unsigned long)st.st_size)
		err(1, "%s", argv[1]);
	mem = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED)
		err(1, "mmap");
	sigaction(SIGBUS, &sa, NULL);
	*(volatile char *)(mem + offset);
	map = open("/proc/self/pagemap", O_RDONLY);
	if (map < 0 || pread(map, &entry, 8, (uintptr_t)(mem + offset) / getpagesize() * 8) != 8)
		err(1, "pagemap");
	ret = mce_consume(monitor, MCE_LOAD, mem + offset, entry & ((1ULL << 55) - 1), cpu[0]);
	if (ret)
		errx(1, "no machine check came: %s", strerror(-ret));
	printf("%d %s\n", 1 << last.si_addr_lsb % 10, unit[last.si_addr_lsb / 10]);
	return 0;
}
