// SPDX-License-Identifier: GPL-2.0
/*
 * Heal the hugepages that a process has kept through memory errors, a virtual machine
 * monitor, say (MFD_MF_KEEP_UE_MAPPED):
 *
 *	heal-kept-memory [-n] PID [FD]
 *
 * gives up the lost pages of the file that is the process's descriptor FD, or of all its
 * files. The kernel then replaces the damaged hugepages under their users: what was lost
 * is zero, and all else is as it was. With -n it only shows what is lost.
 *
 * A guest can't tell these zeroes from its data: let it set lost pages aside first. And
 * let nobody else heal or punch the file meanwhile, or what is written to the fresh
 * hugepage may be zeroed. (Another of this program waits.)
 *
 * Exit status: 0 if nothing is left lost, 1 if something is, 2 if it couldn't look.
 *
 * See Documentation/userspace-api/mfd_mfr_policy.rst.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* The lost pages of a file, in ascending order */
static struct run {
	long long start, end;
} *runs;
static int nr_runs;

/* Read that. Files without the policy have no such map. */
static bool read_map(const char *pid, int fd)
{
	char path[64], *line = NULL;
	bool kept = false;
	size_t size = 0;
	struct run run;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%s/fdinfo/%d", pid, fd);
	f = fopen(path, "r");
	if (!f)
		return false;
	for (nr_runs = 0; getline(&line, &size, f) >= 0;) {
		kept |= !strncmp(line, "mf-policy:", 10);
		if (sscanf(line, "mf-lost: %lli %lli", &run.start, &run.end) != 2)
			continue;
		run.end += run.start;
		runs = reallocarray(runs, nr_runs + 1, sizeof(run));
		if (!runs)
			err(2, "%s", path);
		runs[nr_runs++] = run;
	}
	if (ferror(f))
		err(2, "%s", path);
	free(line);
	fclose(f);
	return kept;
}

/* The first run of lost pages between @from and @to */
static bool first_run(long long from, long long to, struct run *run)
{
	for (int i = 0; i < nr_runs; i++) {
		run->start = runs[i].start > from ? runs[i].start : from;
		run->end = runs[i].end < to ? runs[i].end : to;
		if (run->start < run->end)
			return true;
	}
	return false;
}

/*
 * Give up what the hugepage between @from and @to has lost. EIO says that more is lost,
 * and the call for the last of it heals. That may come early, if others were given up
 * before. What follows in our map is healthy then, and not to be zeroed.
 * Returns why it is not healed.
 */
static const char *heal(int fd, long long from, long long to)
{
	long long lost = 0;
	struct run run;

	for (long long at = from; first_run(at, to, &run); at = run.end) {
		if (!fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, run.start,
			       run.end - run.start))
			return NULL;
		switch (errno) {
		case EIO:
			lost += run.end - run.start;
			break;
		case EINTR:
			run.end = at;
			break;
		case ENOSPC:
			return "there is no free hugepage to replace it";
		case EBUSY:
			return "it is pinned, for a device or io_uring, say";
		case EPERM:
			return "the file is sealed against writing";
		default:
			return strerror(errno);
		}
	}
	return lost == to - from ? "not all of its losses are known" :
				   "it has lost more meanwhile, or can't be moved";
}

/* Returns whether something is left lost. @number is what the process has it open as. */
static bool heal_file(int fd, const char *number, long long hugepage, bool only_show)
{
	long long from, to;
	const char *reason;
	struct run run;

	for (to = 0; read_map("self", fd), first_run(to, LLONG_MAX, &run);) {
		from = run.start & -hugepage;
		to = from + hugepage;
		for (long long at = from; first_run(at, to, &run); at = run.end)
			printf("fd %s: lost %#llx %#llx\n", number, run.start,
			       run.end - run.start);
		if (only_show)
			continue;
		reason = heal(fd, from, to);
		printf("fd %s: hugepage at %#llx: %s%s\n", number, from,
		       reason ? "not healed, " : "healed", reason ?: "");
	}
	read_map("self", fd);
	return nr_runs;
}

/* Several descriptors may be of one file. */
static bool is_new(const struct stat *st)
{
	static struct stat *seen;
	static int nr;

	for (int i = 0; i < nr; i++)
		if (seen[i].st_dev == st->st_dev && seen[i].st_ino == st->st_ino)
			return false;
	seen = reallocarray(seen, nr + 1, sizeof(*seen));
	if (!seen)
		err(2, NULL);
	seen[nr++] = *st;
	return true;
}

static bool is_number(const char *text)
{
	return *text && strspn(text, "0123456789") == strlen(text);
}

int main(int argc, char **argv)
{
	bool only_show = argc > 1 && !strcmp(argv[1], "-n"), kept = false, lost = false;
	const char *pid = argv[1 + only_show], *number = NULL;
	struct dirent *entry;
	struct stat st;
	char path[300];
	DIR *dir;
	int fd;

	if (argc == 3 + only_show)
		number = argv[2 + only_show];
	else if (argc != 2 + only_show)
		pid = "";
	if (!is_number(pid) || (number && !is_number(number)))
		errx(2, "usage: heal-kept-memory [-n] PID [FD]");
	setvbuf(stdout, NULL, _IOLBF, 0);

	snprintf(path, sizeof(path), "/proc/%s/fdinfo", pid);
	dir = opendir(path);
	if (!dir)
		err(2, "%s", path);
	while ((entry = readdir(dir))) {
		if (!is_number(entry->d_name) || (number && strcmp(number, entry->d_name)))
			continue;
		/* Open no others: that may have effects. */
		fd = atoi(entry->d_name);
		if (!read_map(pid, fd))
			continue;
		kept = true;
		snprintf(path, sizeof(path), "/proc/%s/fd/%s", pid, entry->d_name);
		fd = open(path, only_show ? O_RDONLY : O_RDWR);
		if (fd < 0 || fstat(fd, &st) || (!only_show && flock(fd, LOCK_EX)))
			err(2, "%s", path);
		if (is_new(&st))
			lost |= heal_file(fd, entry->d_name, st.st_blksize, only_show);
		close(fd);
	}
	if (!kept)
		errx(2, "process %s: no such file with MFD_MF_KEEP_UE_MAPPED", pid);
	return lost;
}
