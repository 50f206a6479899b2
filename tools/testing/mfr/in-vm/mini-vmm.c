// SPDX-License-Identifier: GPL-2.0
/*
 * A program that treats its memory as a small VMM treats its guest's: it has a
 * hugepage, a SIGBUS handler that notes which pages are lost, and goes on serving
 * the rest. Memory errors hit pages that it uses; then the memory is released.
 * It prints what it has seen, as KEY=VALUE lines for run.awk. Nothing is presumed:
 * each figure is measured.
 *
 * mini-vmm SIZE-OF-THE-HUGEPAGE-IN-KIB
 */
#define _GNU_SOURCE
#include <linux/kernel-page-flags.h>
#include "kept_memory.h"
#include "machine_check.h"

#define PAGE	4096UL
#define PATTERN(page)	((unsigned char)((page) * 31 + 7))

static siginfo_t last;

static void on_sigbus(int sig, siginfo_t *si, void *context)
{
	last = *si;
	mce_release_victim();
	kept_recover(context);
	/* Some other access: the next try is fatal. */
	signal(sig, SIG_DFL);
}

static void die(const char *what)
{
	printf("error=%s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned long read_number(const char *path)
{
	unsigned long n;
	FILE *f = fopen(path, "r");

	if (!f || fscanf(f, "%lu", &n) != 1)
		die(path);
	fclose(f);
	return n;
}

static unsigned long meminfo(const char *key)
{
	char line[128];
	unsigned long n = 0;
	FILE *f = fopen("/proc/meminfo", "r");

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, key, strlen(key)))
			n = strtoul(line + strlen(key) + 1, NULL, 10);
	if (f)
		fclose(f);
	return n;
}

static uint64_t read_entry(const char *path, uint64_t index)
{
	uint64_t entry;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || pread(fd, &entry, 8, index * 8) != 8)
		die(path);
	close(fd);
	return entry;
}

/* A memory error in the page at @p, which this thread is using. */
static void memory_error(unsigned char *p, unsigned long pfn)
{
	int monitor = mce_open_monitor(), cpu[2];

	if (monitor < 0 || !mce_cpus(cpu))
		die("no machine checks here");
	if (mce_consume(monitor, MCE_LOAD, (char *)p, pfn, cpu[0]) == -ETIMEDOUT)
		die("the machine check did not come");
	close(monitor);
}

int main(int argc, char **argv)
{
	unsigned long kib = argc > 1 ? strtoul(argv[1], NULL, 10) : 1048576;
	unsigned long size = kib << 10, pages = size / PAGE;
	/* The first and the last page, and both sides of a 2 MiB line. */
	unsigned long hit[] = { 0, pages / 2 - 1, pages / 2, pages - 1 };
	const unsigned int errors = sizeof(hit) / sizeof(*hit);
	struct sigaction sa = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO,
	};
	unsigned long i, good = 0, lost = 0, wrong = 0, first_pfn;
	static unsigned char buffer[PAGE];
	struct kept_memory guest;
	char pool[128];
	unsigned char *mem;
	uint64_t *kpageflags;
	int fd;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sigaction(SIGBUS, &sa, NULL);

	snprintf(pool, sizeof(pool),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/nr_hugepages", kib);
	fd = open(pool, O_WRONLY);
	if (fd < 0 || write(fd, "2", 1) != 1)
		die(pool);
	close(fd);
	printf("pool_before=%lu\n", read_number(pool));

	fd = kept_memfd("guest", __builtin_ctzl(size) << MFD_HUGE_SHIFT, size);
	if (fd < 0 || kept_open(&guest, fd))
		die("guest memory");
	printf("flag=%s\n", guest.kept ? "yes" : "no");
	mem = (unsigned char *)guest.map;
	for (i = 0; i < pages; i++)
		memset(mem + i * PAGE, PATTERN(i), PAGE);
	first_pfn = read_entry("/proc/self/pagemap", (uintptr_t)mem / PAGE) &
		    ((1UL << 55) - 1);
	printf("corrupted_before=%lu\n", meminfo("HardwareCorrupted:"));

	for (i = 0; i < errors; i++) {
		unsigned char *p = mem + hit[i] * PAGE;

		memset(&last, 0, sizeof(last));
		memory_error(p, first_pfn + hit[i]);
		if (last.si_signo)
			printf("signal=%lu page %lu: code=%s address=%s lsb=%d\n",
			       i + 1, hit[i],
			       last.si_code == BUS_MCEERR_AR ? "AR" :
			       last.si_code == BUS_MCEERR_AO ? "AO" : "other",
			       last.si_addr == p ? "exact" : "other",
			       last.si_addr_lsb);
		else
			printf("signal=%lu page %lu: none\n", i + 1, hit[i]);
	}

	/*
	 * Serve on: all memory that the program doesn't know as lost. The
	 * emulated hardware doesn't refuse a page once the machine check is
	 * over, so the pages that were hit are left out, as a VMM does. A signal
	 * for more than a page is believed as far as the next 2 MiB, and tried
	 * again there.
	 */
	for (i = 0; i < pages; i++) {
		unsigned char *p = mem + i * PAGE;
		unsigned long j, n;

		for (j = 0; j < errors && hit[j] != i; j++)
			;
		if (j < errors) {
			lost++;
			continue;
		}
		if (kept_copy(buffer, p, PAGE) != PAGE) {
			n = last.si_addr_lsb > 12 ? 512 - i % 512 : 1;
			lost += n;
			i += n - 1;
			continue;
		}
		for (j = 0; j < PAGE && buffer[j] == PATTERN(i); j++)
			;
		if (j == PAGE)
			good++;
		else
			wrong++;
	}
	printf("running_lost_bytes=%lu\n", lost * PAGE);
	printf("running_good_bytes=%lu\n", good * PAGE);
	printf("running_wrong_bytes=%lu\n", wrong * PAGE);
	printf("corrupted_running=%lu\n", meminfo("HardwareCorrupted:"));

	munmap(mem, size);
	close(fd);
	sleep(1);

	/*
	 * Where has the memory gone? A page that is marked as lost is; so is all
	 * of a hugepage that still is one and whose first page has that mark:
	 * neither the pool nor anybody else gets it.
	 */
	kpageflags = malloc(pages * 8);
	fd = open("/proc/kpageflags", O_RDONLY);
	if (!kpageflags || fd < 0 ||
	    pread(fd, kpageflags, pages * 8, first_pfn * 8) != (ssize_t)(pages * 8))
		die("/proc/kpageflags");
	close(fd);
	for (lost = i = 0; i < pages; i++)
		if (kpageflags[i] >> KPF_HWPOISON & 1 ||
		    (kpageflags[i] >> KPF_HUGE & 1 &&
		     kpageflags[0] >> KPF_HWPOISON & 1))
			lost++;
	printf("released_lost_bytes=%lu\n", lost * PAGE);
	printf("corrupted_released=%lu\n", meminfo("HardwareCorrupted:"));
	printf("pool_after=%lu\n", read_number(pool));
	strcpy(strrchr(pool, '/'), "/free_hugepages");
	printf("pool_free_after=%lu\n", read_number(pool));
	printf("done=yes\n");
	return 0;
}
