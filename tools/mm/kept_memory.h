/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Hugepages that survive memory errors, for virtual machine monitors and others: files
 * with MFD_MF_KEEP_UE_MAPPED, and files without it on kernels that lack it.  See
 * Documentation/userspace-api/mfd_mfr_policy.rst, which has an example, and mfd_mfr_vmm.rst.
 *
 * This file may be copied into other programs.  It needs POSIX threads, GCC or Clang,
 * _GNU_SOURCE before the first header of C, and /proc, also in a sandbox.  It works in C and
 * in C++.
 *
 * Functions that return int return -1 and set errno if they fail, unless they say more.
 */
#ifndef _KEPT_MEMORY_H
#define _KEPT_MEMORY_H

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/memfd.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef MFD_MF_KEEP_UE_MAPPED
#define MFD_MF_KEEP_UE_MAPPED	0x0020U
#endif

#ifdef __cplusplus
extern "C" {
#endif

/*
 * Creation
 */
/* A mapping of a file.  A program that maps it twice has two of these. */
struct kept_memory {
	int fd;
	int kept;		/* whether the file has the policy */
	char *map;		/* all of the file, from its start */
	size_t size;
	size_t hugepage;	/* the size of one */
};

/*
 * Create a file of hugepages, with the policy if the kernel has it.  @flags are those of
 * memfd_create(2), such as MFD_CLOEXEC and MFD_HUGE_2MB: without a size the hugepages have
 * the system's default size.
 */
static inline int kept_memfd(const char *name, unsigned int flags, uint64_t size)
{
	int fd, error;

	flags |= MFD_HUGETLB;
	fd = memfd_create(name, flags | MFD_MF_KEEP_UE_MAPPED);
	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, flags);
	if (fd >= 0 && ftruncate(fd, (off_t)size)) {
		error = errno;
		close(fd);
		errno = error;
		fd = -1;
	}
	return fd;
}

/*
 * The map of lost pages
 */
typedef void kept_run_fn(void *arg, uint64_t offset, uint64_t length);

/*
 * Call @lost for each run of lost pages of the file that is @fd in the process @pid, or in
 * this one if @pid is 0, and @damaged for each run of damaged bytes in them.  Each may be
 * NULL.  Returns 1 if the file has the policy, and 0 if it has none, and so no map.
 */
static inline int kept_read_map(pid_t pid, int fd, kept_run_fn *lost, kept_run_fn *damaged,
				void *arg)
{
	unsigned long long offset, length;
	int has_policy = 0, error = 0;
	char path[64], *line = NULL;
	size_t room = 0;
	FILE *f;

	if (pid)
		snprintf(path, sizeof(path), "/proc/%ld/fdinfo/%d", (long)pid, fd);
	else
		snprintf(path, sizeof(path), "/proc/thread-self/fdinfo/%d", fd);
	f = fopen(path, "re");
	if (!f)
		return -1;
	while (getline(&line, &room, f) >= 0) {
		if (!strncmp(line, "mf-policy:", 10))
			has_policy = 1;
		else if (lost && sscanf(line, "mf-lost: %llx %llx", &offset, &length) == 2)
			lost(arg, offset, length);
		else if (damaged &&
			 sscanf(line, "mf-damaged: %llx %llx", &offset, &length) == 2)
			damaged(arg, offset, length);
	}
	if (!feof(f))
		error = errno;
	free(line);
	fclose(f);
	if (!error)
		return has_policy;
	errno = error;
	return -1;
}

/*
 * Map a file that kept_memfd() has made, or that another process has handed over.  Be
 * ready for SIGBUS before that.  Fails with ENOMEM if the pool has too few hugepages.
 */
static inline int kept_open(struct kept_memory *m, int fd)
{
	struct stat st;
	void *map;

	m->fd = fd;
	m->kept = kept_read_map(0, fd, NULL, NULL, NULL);
	if (m->kept < 0 || fstat(fd, &st))
		return -1;
	m->size = (size_t)st.st_size;
	m->hugepage = (size_t)st.st_blksize;
	map = mmap(NULL, m->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return -1;
	m->map = (char *)map;
	return 0;
}

/*
 * The handler of SIGBUS
 */
/*
 * Returns 1 if the signal reports a memory error in the mapping of @m, with what is lost in
 * @offset and @length: one page with the policy, and the hugepage without it.  A handler
 * returns from BUS_MCEERR_AO in any case: it may be from before execve(2), or about memory
 * that has no struct kept_memory yet.  BUS_OBJERR reports some errors of arm64 machines.
 */
static inline int kept_lost(const struct kept_memory *m, const siginfo_t *si,
			    uint64_t *offset, uint64_t *length)
{
	uint64_t at = (uintptr_t)si->si_addr - (uintptr_t)m->map;

	if ((si->si_code != BUS_MCEERR_AR && si->si_code != BUS_MCEERR_AO &&
	     si->si_code != BUS_OBJERR) || !si->si_addr || at >= m->size)
		return 0;
	*length = m->kept ? (uint64_t)sysconf(_SC_PAGESIZE) : m->hugepage;
	*offset = at & -*length;
	return 1;
}

struct kept_jump {
	sigjmp_buf buf;
};

/* The jump target of kept_try() in this thread.  All files of a program share it. */
#pragma weak kept_armed
__thread struct kept_jump *kept_armed;

/*
 * For the handler, with its last argument, if kept_lost() returned 1: end the access
 * that kept_try() makes in this thread.  Returns if it makes none.
 */
static inline void kept_recover(void *ucontext)
{
	if (!kept_armed)
		return;
	pthread_sigmask(SIG_SETMASK, &((ucontext_t *)ucontext)->uc_sigmask, NULL);
	siglongjmp(kept_armed->buf, 1);
}

/*
 * Call @access, which may use lost memory.  If it does, this returns -1 with EFAULT, and the
 * rest of @access is not executed.  So @access must not take locks, and the caller must not
 * block SIGBUS.
 */
static inline int kept_try(void (*access)(void *arg), void *arg)
{
	struct kept_jump *before = kept_armed, jump;

	if (sigsetjmp(jump.buf, 0)) {
		kept_armed = before;
		errno = EFAULT;
		return -1;
	}
	__atomic_store_n(&kept_armed, &jump, __ATOMIC_RELAXED);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	access(arg);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	__atomic_store_n(&kept_armed, before, __ATOMIC_RELAXED);
	return 0;
}

struct kept_copying {
	char *to;
	const char *from;
	size_t len;
	size_t done;
};

/* Load each word once, and nothing else: some CPUs read beyond the end in memcpy(). */
static inline void kept_copy_words(void *arg)
{
	struct kept_copying *c = (struct kept_copying *)arg;
	size_t i = 0, step;
	unsigned long word;

	for (; i < c->len; i += step) {
		step = sizeof(word);
		if ((uintptr_t)(c->from + i) % step || c->len - i < step) {
			step = 1;
			c->to[i] = __atomic_load_n(c->from + i, __ATOMIC_RELAXED);
		} else {
			word = __atomic_load_n((const unsigned long *)(c->from + i),
					       __ATOMIC_RELAXED);
			memcpy(c->to + i, &word, step);
		}
		__atomic_store_n(&c->done, i + step, __ATOMIC_RELAXED);
	}
}

/*
 * Copy from or to memory that may be lost.  Returns the number of bytes in front of what is
 * lost.  A caller that wants the rest goes on at the next page.  A store to a lost page fails
 * only if the hugepage isn't mapped.  Otherwise it may succeed, and what it writes is lost.
 */
static inline size_t kept_copy(void *to, const void *from, size_t len)
{
	struct kept_copying c = { (char *)to, (const char *)from, len, 0 };

	kept_try(kept_copy_words, &c);
	return __atomic_load_n(&c.done, __ATOMIC_RELAXED);
}

/*
 * A thread for early kill
 *
 * Only this thread is notified of lost pages that the process has not touched.  It waits for
 * SIGBUS with sigwaitinfo(2), so it works without the handler, and in a library.  It is not
 * told of a page that another thread consumes: the handler adds that to the list.
 */
typedef void kept_lost_fn(void *arg, const struct kept_memory *m, uint64_t offset,
			  uint64_t length);

/* The caller sets memory, nr, lost and arg, and all other fields to zero. */
struct kept_watch {
	/* All that the process has: an array, which must not change meanwhile */
	const struct kept_memory *memory;
	unsigned int nr;
	/*
	 * Called with the lock held, for each run of lost pages in the map, by the thread when
	 * it starts and after each signal, and by kept_watch_read(): again for those that it
	 * was called for before.  Must not use the memory.
	 */
	kept_lost_fn *lost;
	void *arg;
	/* Held from before a map is read until @lost was called for all that is in it. */
	pthread_mutex_t lock;
	/* For the functions below */
	const struct kept_memory *now;
	pthread_t thread;
	sem_t started;
	int error;
	int stop;
};

static inline void kept_watch_run(void *arg, uint64_t offset, uint64_t length)
{
	struct kept_watch *w = (struct kept_watch *)arg;

	w->lost(w->arg, w->now, offset, length);
}

/* A signal may be from before its hugepage was replaced.  Without a map, read(2) tells. */
static inline int kept_read_fails(int fd, uint64_t offset, uint64_t length)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), end = offset + length;
	char c;

	for (; offset < end; offset += page)
		if (pread(fd, &c, 1, (off_t)offset) < 0 && errno == EIO)
			return 1;
	return 0;
}

static inline int kept_watch_look(struct kept_watch *w, const siginfo_t *si)
{
	uint64_t offset, length;
	int error = 0;

	pthread_mutex_lock(&w->lock);
	for (w->now = w->memory; w->now < w->memory + w->nr; w->now++) {
		if (kept_read_map(0, w->now->fd, kept_watch_run, NULL, w) < 0)
			error = errno;
		/* Without the policy there is no map, and the signal is all there is. */
		if (si && !w->now->kept && kept_lost(w->now, si, &offset, &length) &&
		    kept_read_fails(w->now->fd, offset, length))
			w->lost(w->arg, w->now, offset, length);
	}
	pthread_mutex_unlock(&w->lock);
	return error;
}

/* Call @lost for all that is lost now, as the thread does after a signal.  Takes the lock. */
static inline int kept_watch_read(struct kept_watch *w)
{
	int error = kept_watch_look(w, NULL);

	errno = error;
	return error ? -1 : 0;
}

static inline void *kept_watch_thread(void *arg)
{
	struct kept_watch *w = (struct kept_watch *)arg;
	struct timespec second = { 1, 0 };
	siginfo_t si;
	sigset_t set;
	int error, sig;

	/* This comes first: from early kill on, SIGBUS comes here.  Others are for the program. */
	sigfillset(&set);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	if (prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0))
		w->error = errno;
	else
		w->error = kept_watch_look(w, NULL);
	error = w->error;
	sem_post(&w->started);
	if (error)
		return NULL;

	for (;;) {
		/* A map that couldn't be read, for want of memory, is tried again. */
		sig = sigtimedwait(&set, &si, error ? &second : NULL);
		if (__atomic_load_n(&w->stop, __ATOMIC_RELAXED))
			return NULL;
		error = kept_watch_look(w, sig < 0 ? NULL : &si);
	}
}

/*
 * Call this when the memory is mapped, and before other threads are made: the caller, and
 * threads that it makes later, get no signals for pages that they have not used.  All
 * that is lost by now has been reported when this returns.  A process has one such thread,
 * which blocks all signals.  If this fails there is none, and kept_watch_stop() must not be
 * called.  To change the array, stop the thread and start it again: that reports what was
 * lost meanwhile.  Starting initializes the lock, so nobody may use it in between.
 */
static inline int kept_watch_start(struct kept_watch *w)
{
	int error;

	if (prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0))
		return -1;
	pthread_mutex_init(&w->lock, NULL);
	sem_init(&w->started, 0, 0);
	w->error = 0;
	w->stop = 0;
	error = pthread_create(&w->thread, NULL, kept_watch_thread, w);
	if (!error) {
		while (sem_wait(&w->started))
			;
		error = w->error;
		if (error)
			pthread_join(w->thread, NULL);
	}
	errno = error;
	return error ? -1 : 0;
}

/* Call this before the memory is unmapped. */
static inline void kept_watch_stop(struct kept_watch *w)
{
	__atomic_store_n(&w->stop, 1, __ATOMIC_RELAXED);
	pthread_kill(w->thread, SIGBUS);
	pthread_join(w->thread, NULL);
}

/*
 * Healthy memory in place of lost memory
 */
struct kept_run {
	uint64_t start, end;
};

/* Whether the contents of these lost pages may become zero: 0 if not. */
typedef int kept_may_zero_fn(void *arg, uint64_t offset, uint64_t length);

struct kept_runs {
	uint64_t start, end;		/* of the hugepage */
	struct kept_run *run;		/* of lost pages in it, in ascending order */
	size_t nr;
	int error;
};

static inline void kept_add_run(void *arg, uint64_t offset, uint64_t length)
{
	struct kept_runs *r = (struct kept_runs *)arg;
	uint64_t end = offset + length;
	struct kept_run *more;

	if (offset < r->start)
		offset = r->start;
	if (end > r->end)
		end = r->end;
	if (offset >= end)
		return;
	more = (struct kept_run *)realloc(r->run, (r->nr + 1) * sizeof(*more));
	if (!more) {
		r->error = ENOMEM;
		return;
	}
	r->run = more;
	r->run[r->nr].start = offset;
	r->run[r->nr++].end = end;
}

static inline int kept_fallocate(int fd, int mode, uint64_t offset, uint64_t length)
{
	int ret;

	do {
		ret = fallocate(fd, mode, (off_t)offset, (off_t)length);
	} while (ret && errno == EINTR);
	return ret;
}

/*
 * Give up what the hugepage around @offset has lost.  The kernel then replaces it by a
 * healthy one, transparently to its users.  Lost pages become zero: tell a guest first.
 * @may_zero is asked about each run of lost pages before any is given up, as pages may have
 * been lost since.  If it is NULL all may become zero.
 * Nobody else may heal or punch the file meanwhile: pages that this call has seen on the
 * map would be zeroed although they are healthy by then.
 *
 * A caller with a thread for early kill holds the lock of struct kept_watch from before this
 * call until it has dropped the pages from its list, unlocks, and calls kept_watch_read().
 *
 * Returns 0 also if nothing is lost there.  Fails, with all bytes as they were, with EAGAIN if
 * @may_zero returned 0, ENOSPC if there is no free hugepage, EBUSY if it is pinned or was in
 * use for more than a second, EPERM if there is a write seal, EIO if it has lost more
 * meanwhile or can't be moved, and EOPNOTSUPP without the policy or on kernels that can't do
 * it: use kept_replace() then.  After EIO, call it again if the map has changed.
 */
static inline int kept_heal(int fd, uint64_t offset, kept_may_zero_fn *may_zero, void *arg)
{
	struct kept_runs lost = { 0, 0, NULL, 0, 0 };
	int ret, error;
	struct stat st;
	size_t i;

	if (fstat(fd, &st))
		return -1;
	lost.start = offset & -(uint64_t)st.st_blksize;
	lost.end = lost.start + (uint64_t)st.st_blksize;
	ret = kept_read_map(0, fd, kept_add_run, NULL, &lost);
	error = ret < 0 ? errno : ret ? lost.error : EOPNOTSUPP;
	for (i = 0; !error && may_zero && i < lost.nr; i++)
		if (!may_zero(arg, lost.run[i].start, lost.run[i].end - lost.run[i].start))
			error = EAGAIN;

	/*
	 * The call for the last page heals, or an earlier one if pages were given up before: the
	 * other pages of the map are healthy then, and not to be zeroed.
	 */
	for (i = 0; !error && i < lost.nr; i++) {
		ret = kept_fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
				     lost.run[i].start,
				     lost.run[i].end - lost.run[i].start);
		if (!ret)
			break;
		if (errno != EIO)
			error = errno;
		else if (i + 1 == lost.nr)
			error = EIO;
	}
	free(lost.run);
	errno = error;
	return error ? -1 : 0;
}

/*
 * Read from the file, with zeroes for lost pages: to save or migrate the memory.  Whole pages
 * only.  Calls @lost, which may be NULL, for each page that is zero for this reason: it may
 * not have been on the map before.  On CPUs whose kernel does not survive unknown errors in
 * read(2), see the document of the policy, use kept_copy() from the mapping instead.
 */
static inline int kept_save(int fd, uint64_t offset, void *to, size_t length,
			    kept_run_fn *lost, void *arg)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), done = 0, part;
	struct stat st;
	ssize_t got;

	if (fstat(fd, &st))
		return -1;
	while (done < length) {
		/* Without the policy EIO for the start of the next hugepage may come too early. */
		part = (size_t)st.st_blksize - (offset + done) % (size_t)st.st_blksize;
		if (part > length - done)
			part = length - done;
		got = pread(fd, (char *)to + done, part, (off_t)(offset + done));
		if (got > 0) {
			done += (size_t)got;
		} else if (!got) {
			/* The end of the file */
			memset((char *)to + done, 0, length - done);
			done = length;
		} else if (errno == EIO) {
			part = page - done % page;
			memset((char *)to + done, 0, part);
			if (lost)
				lost(arg, offset + done, part);
			done += part;
		} else if (errno != EINTR) {
			return -1;
		}
	}
	return 0;
}

/* Punch out a hugepage, take another one from the pool, and write @contents to it. */
static inline int kept_swap(int fd, uint64_t offset, const void *contents, size_t hugepage)
{
	unsigned int flags = (unsigned int)__builtin_ctzl(hugepage) << MFD_HUGE_SHIFT;
	int ret = -1, spare;
	void *map;

	/* After the punch, only the allocation may fail. */
	map = mmap(NULL, hugepage, PROT_WRITE, MAP_SHARED, fd, (off_t)offset);
	if (map == MAP_FAILED)
		return -1;
	spare = memfd_create("spare", MFD_CLOEXEC | MFD_HUGETLB | flags);
	if (spare >= 0)
		ret = kept_fallocate(spare, 0, 0, hugepage);
	if (!ret)
		ret = kept_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset,
				     hugepage);
	if (spare >= 0)
		close(spare);
	if (!ret) {
		ret = kept_fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, hugepage);
		if (ret)
			errno = ENODATA;
		else
			memcpy(map, contents, hugepage);
	}
	munmap(map, hugepage);
	return ret;
}

/*
 * The same as kept_heal() where that fails with EOPNOTSUPP: save what is healthy of the
 * hugepage around @offset, punch it out, and fill another one.  Stop the guest and all
 * devices first, and hold the lock of struct kept_watch as for kept_heal().  Calls @lost as
 * kept_save() does: these pages become zero if the call succeeds, or fails with ENODATA.
 *
 * If it fails with ENODATA somebody else has taken the last free hugepage in the middle: there
 * is a hole then, and all contents are gone.  If it fails with another error, such as ENOSPC,
 * the hugepage is as it was.
 */
static inline int kept_replace(int fd, uint64_t offset, kept_run_fn *lost, void *arg)
{
	size_t hugepage;
	void *contents;
	struct stat st;
	int ret, error;

	if (fstat(fd, &st))
		return -1;
	hugepage = (size_t)st.st_blksize;
	offset &= -(uint64_t)hugepage;
	contents = malloc(hugepage);
	if (!contents)
		return -1;
	ret = kept_save(fd, offset, contents, hugepage, lost, arg);
	if (!ret)
		ret = kept_swap(fd, offset, contents, hugepage);
	error = errno;
	free(contents);
	errno = error;
	return ret;
}

#ifdef __cplusplus
}
#endif

#endif /* _KEPT_MEMORY_H */
