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
#include <stdbool.h>
#include <sys/file.h>
#include "kept_memory.h"

/* The first hugepage of a file that has lost pages, after those that are done */
struct damaged {
	const char *number;	/* of the descriptor */
	uint64_t hugepage;	/* the size of one */
	uint64_t start, end;	/* of that hugepage */
	uint64_t lost;		/* bytes of it */
};

/* Show what it has lost. */
static void show_run(void *arg, uint64_t offset, uint64_t length)
{
	uint64_t end = offset + length;
	struct damaged *d = arg;

	if (offset < d->start)
		offset = d->start;
	if (offset >= end)
		return;
	if (!d->lost) {
		d->start = offset & -d->hugepage;
		d->end = d->start + d->hugepage;
	}
	if (end > d->end)
		end = d->end;
	if (offset >= end)
		return;
	d->lost += end - offset;
	printf("fd %s: lost %#llx %#llx\n", d->number, (unsigned long long)offset,
	       (unsigned long long)(end - offset));
}

static const char *why_not_healed(const struct damaged *d)
{
	switch (errno) {
	case ENOSPC:
		return "there is no free hugepage to replace it";
	case EBUSY:
		return "it is pinned, for a device or io_uring, say, or was in use all the time";
	case EPERM:
		return "the file is sealed against writing";
	case EIO:
		return d->lost == d->hugepage ? "not all of its losses are known" :
						"it has lost more meanwhile, or can't be moved";
	default:
		return strerror(errno);
	}
}

static void found_run(void *arg, uint64_t offset, uint64_t length)
{
	(void)offset;
	(void)length;
	*(bool *)arg = true;
}

/* Returns whether something is left lost. @number is what the process has it open as. */
static bool heal_file(int fd, const char *number, uint64_t hugepage, bool only_show)
{
	struct damaged d = { .number = number, .hugepage = hugepage };
	bool left = false;

	for (;;) {
		d.lost = 0;
		if (kept_read_map(0, fd, show_run, NULL, &d) < 0)
			err(2, "the map of fd %s", number);
		if (!d.lost)
			break;
		if (!only_show) {
			printf("fd %s: hugepage at %#llx: ", number, (unsigned long long)d.start);
			if (kept_heal(fd, d.start, NULL, NULL))
				printf("not healed, %s\n", why_not_healed(&d));
			else
				printf("healed\n");
		}
		d.start = d.end;
	}
	if (kept_read_map(0, fd, found_run, NULL, &left) < 0)
		err(2, "the map of fd %s", number);
	return left;
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
	bool only_show = argc > 1 && !strcmp(argv[1], "-n"), any = false, lost = false;
	const char *pid = argv[1 + only_show], *number = NULL;
	struct dirent *entry;
	struct stat st;
	char path[300];
	int fd, kept;
	DIR *dir;

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
		kept = kept_read_map(atoi(pid), fd, NULL, NULL, NULL);
		if (kept < 0 && errno != ENOENT)
			err(2, "fdinfo of process %s", pid);
		if (kept <= 0)
			continue;
		any = true;
		snprintf(path, sizeof(path), "/proc/%s/fd/%s", pid, entry->d_name);
		fd = open(path, only_show ? O_RDONLY : O_RDWR);
		if (fd < 0 || fstat(fd, &st) || (!only_show && flock(fd, LOCK_EX)))
			err(2, "%s", path);
		if (is_new(&st))
			lost |= heal_file(fd, entry->d_name, (uint64_t)st.st_blksize, only_show);
		close(fd);
	}
	if (!any)
		errx(2, "process %s: no such file with MFD_MF_KEEP_UE_MAPPED", pid);
	return lost;
}
