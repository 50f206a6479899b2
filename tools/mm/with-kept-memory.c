// SPDX-License-Identifier: GPL-2.0
/*
 * Run a program that can be told which file its memory is to be in, but doesn't know of
 * MFD_MF_KEEP_UE_MAPPED: QEMU, say, as it is.
 *
 *	with-kept-memory SIZE[:HUGEPAGESIZE] COMMAND...
 *
 * makes a memfd of hugepages with that flag and executes COMMAND, which inherits it. %fd
 * in its arguments is replaced by the number of the file descriptor:
 *
 *	with-kept-memory 1G:1G qemu-system-x86_64 -m 1G -M pc,memory-backend=m -object \
 *	    memory-backend-file,id=m,size=1G,share=on,mem-path=/proc/self/fd/%fd ...
 *
 * Where the kernel lacks the flag the memfd is one without, and a message says so.
 * Sizes are in bytes, or with K, M or G behind them. Without HUGEPAGESIZE it is the
 * system's default.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "kept_memory.h"

static unsigned long size_of(const char *text, char **end)
{
	static const char units[] = "KMG";
	unsigned long size = strtoul(text, end, 0);
	const char *unit = **end ? strchr(units, **end) : NULL;

	if (unit) {
		size <<= 10 * (unit - units + 1);
		++*end;
	}
	return size;
}

/* A copy of @arg with @fd for each %fd. */
static char *with_fd(const char *arg, int fd)
{
	const char *at = strstr(arg, "%fd");
	char *start, *rest;

	if (!at)
		return strdup(arg);
	rest = with_fd(at + 3, fd);
	if (!rest || asprintf(&start, "%.*s%d%s", (int)(at - arg), arg, fd, rest) < 0)
		return NULL;
	free(rest);
	return start;
}

int main(int argc, char **argv)
{
	unsigned long size, hugepage = 0;
	unsigned int flags = 0;
	char *end;
	int fd, i;

	if (argc < 3)
		errx(2, "usage: with-kept-memory SIZE[:HUGEPAGESIZE] COMMAND...");
	size = size_of(argv[1], &end);
	if (*end == ':')
		hugepage = size_of(end + 1, &end);
	if (*end || !size || (hugepage & (hugepage - 1)))
		errx(2, "%s: not a size", argv[1]);
	if (hugepage)
		flags = (unsigned int)__builtin_ctzl(hugepage) << MFD_HUGE_SHIFT;

	fd = kept_memfd("kept", flags, size);
	if (fd < 0)
		err(1, "%s of hugepages", argv[1]);
	if (!kept_read_map(0, fd, NULL, NULL, NULL))
		warnx("this kernel doesn't keep hugepages through memory errors");

	for (i = 2; i < argc; i++) {
		argv[i] = with_fd(argv[i], fd);
		if (!argv[i])
			err(1, "%%fd");
	}
	execvp(argv[2], argv + 2);
	err(127, "%s", argv[2]);
}
