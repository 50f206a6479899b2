// SPDX-License-Identifier: GPL-2.0
/*
 * Test the example of Documentation/userspace-api/mfd_mfr_policy.rst, as it stands there,
 * and with it tools/mm/kept_memory.h: with the policy, and without it on a kernel that
 * lacks it. Errors are simulated, so an access fails only by a page fault: zap() leaves all
 * memory to be faulted in again.
 */
#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>

static int nr_interrupted;

static int count_fallocate(int fd, int mode, off_t offset, off_t length)
{
	int ret = fallocate(fd, mode, offset, length);

	nr_interrupted += ret && errno == EINTR;
	return ret;
}

#define main example_main
#define fallocate count_fallocate
#include "kept-memory-example.c"
#undef main

#include <glob.h>
#include <stdbool.h>
#include <sys/time.h>
#include <sys/wait.h>

#define HWPOISON	"/sys/kernel/debug/hwpoison/"
#define POOL		"/sys/kernel/mm/hugepages/hugepages-%zukB/nr_hugepages"
#define NR_HUGE		4
#define NR_LOST		100
#define NR_REPEATS	5000
#define NR_INTERRUPTED	10

static struct kept_watch watch;
static size_t nr_pages, nr_per_huge;
static unsigned long pfn[NR_LOST];
static size_t lost[NR_LOST];	/* the pages that were hit */
static int nr_hit;
static int nr_tests, nr_failed;

static void result(bool ok, const char *name)
{
	nr_failed += !ok;
	printf("%sok %d %s\n", ok ? "" : "not ", ++nr_tests, name);
}

static void die(const char *what)
{
	printf("Bail out! %s: %s\n", what, strerror(errno));
	exit(1);
}

static bool write_number(const char *path, unsigned long n)
{
	FILE *f = fopen(path, "w");
	bool ok;

	if (!f)
		return false;
	ok = fprintf(f, "%lu\n", n) > 0;
	return !fclose(f) && ok;
}

static void set_pool(size_t hugepage, unsigned long nr)
{
	char path[128];

	snprintf(path, sizeof(path), POOL, hugepage / 1024);
	if (!write_number(path, nr))
		die(path);
}

static unsigned char *page_at(size_t page)
{
	return (unsigned char *)guest.map + page * page_size;
}

static unsigned char pattern(size_t page)
{
	return (unsigned char)(page * 31 + page / 251 + 1);
}

static void zap(void)
{
	if (madvise(guest.map, guest.size, MADV_DONTNEED))
		die("MADV_DONTNEED");
}

static unsigned long pfn_of(size_t page)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	uint64_t entry;

	if (fd < 0 || pread(fd, &entry, 8, (off_t)((uintptr_t)page_at(page) / page_size * 8)) != 8)
		die("pagemap");
	close(fd);
	return entry & ((1ULL << 55) - 1);
}

/* Nobody consumes it. */
static void hit(size_t page)
{
	lost[nr_hit] = page;
	pfn[nr_hit] = pfn_of(page);
	if (!pfn[nr_hit])
		die("pagemap");
	nr_hit++;
	if (!write_number(HWPOISON "corrupt-pfn", pfn[nr_hit - 1]))
		die("corrupt-pfn");
}

/* Without the policy, the hugepage is lost with the page. */
static bool should_be_lost(size_t page)
{
	int i;

	for (i = 0; i < nr_hit; i++)
		if (guest.kept ? lost[i] == page : lost[i] / nr_per_huge == page / nr_per_huge)
			return true;
	return false;
}

static bool list_is_right(void)
{
	size_t page, nr = 0;

	for (page = 0; page < nr_pages; page++) {
		if (__atomic_load_n(&is_lost[page], __ATOMIC_RELAXED) != should_be_lost(page))
			return false;
		nr += should_be_lost(page);
	}
	return __atomic_load_n(&nr_lost, __ATOMIC_RELAXED) == nr;
}

/* The thread for early kill takes its time. */
static bool list_gets_right(void)
{
	int tries;

	for (tries = 0; tries < 1000 && !list_is_right(); tries++)
		usleep(10000);
	return list_is_right();
}

static bool is_pattern(const unsigned char *p, size_t page, unsigned char want)
{
	size_t i;

	for (i = 0; i < page_size; i++)
		if (p[i] != want) {
			printf("# page %zu: %#x at %zu, not %#x\n", page, p[i], i, want);
			return false;
		}
	return true;
}

/* Two threads read everything, and lost pages only fail. */
static void *read_all(void *arg)
{
	unsigned char *buffer = malloc(page_size);
	size_t page, *nr_wrong = arg;
	int ret;

	for (page = 0; page < nr_pages; page++) {
		ret = read_guest(buffer, page * page_size, page_size);
		if (ret && should_be_lost(page))
			continue;
		/* A healthy neighbour of a lost page may have mapped it, with its contents. */
		if (ret || !is_pattern(buffer, page, pattern(page)))
			++*nr_wrong;
	}
	free(buffer);
	return NULL;
}

static bool both_read_all(void)
{
	size_t nr_wrong[2] = { 0, 0 };
	pthread_t thread;

	zap();
	if (pthread_create(&thread, NULL, read_all, &nr_wrong[0]))
		die("pthread_create");
	read_all(&nr_wrong[1]);
	pthread_join(thread, NULL);
	return !nr_wrong[0] && !nr_wrong[1];
}

/* Nothing else maps the hugepage meanwhile, so that each access is a fault. */
static void *read_lost(void *arg)
{
	size_t *nr_right = arg;
	char buffer[64];
	int i;

	for (i = 0; i < NR_REPEATS; i++)
		*nr_right += read_guest(buffer, lost[i % 2] * page_size + i % 50,
					sizeof(buffer)) == -EIO;
	return NULL;
}

static bool both_repeat(void)
{
	size_t nr_right[2] = { 0, 0 };
	pthread_t thread;

	zap();
	if (pthread_create(&thread, NULL, read_lost, &nr_right[0]))
		die("pthread_create");
	read_lost(&nr_right[1]);
	pthread_join(thread, NULL);
	return nr_right[0] == NR_REPEATS && nr_right[1] == NR_REPEATS;
}

/*
 * A copy ends where the lost page begins, whatever the alignment. It is the first one of its
 * hugepage, so reading in front of it doesn't map it.
 */
static bool copies_end_there(void)
{
	char buffer[300], *page = (char *)page_at(lost[0]);
	size_t before;

	for (before = 0; before < 130; before += 13) {
		zap();
		if (kept_copy(buffer, page - before, sizeof(buffer)) != before)
			return false;
	}
	return kept_copy(page, buffer, sizeof(buffer)) == 0;
}

/* An access without kept_try(): it is fatal, and not a jump to anywhere. */
static bool unguarded_is_fatal(bool after_guarded)
{
	char buffer[1];
	int status;
	pid_t pid;

	zap();
	pid = fork();
	if (!pid) {
		if (after_guarded)
			read_guest(buffer, lost[0] * page_size, 1);
		_exit(__atomic_load_n(page_at(lost[0]), __ATOMIC_RELAXED));
	}
	return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) &&
	       WTERMSIG(status) == SIGBUS;
}

static size_t nr_zeroed;
static bool zeroed_wrong;

/* Each lost page is reported once, in order. */
static void zeroed(void *arg, uint64_t offset, uint64_t length)
{
	uint64_t *next = arg;
	int i;

	for (i = 0; i < nr_hit; i++)
		if (lost[i] * page_size == offset)
			break;
	if (i == nr_hit || offset < *next || length != page_size)
		zeroed_wrong = true;
	*next = offset + length;
	nr_zeroed++;
}

static bool saved_is_right(void)
{
	unsigned char *saved = malloc(guest.size);
	uint64_t next = 0;
	size_t page, i;
	bool right;

	nr_zeroed = 0;
	right = saved && !kept_save(guest.fd, 0, saved, guest.size, zeroed, &next) &&
		nr_zeroed == (size_t)nr_hit && !zeroed_wrong;

	/* read(2) leaves out the lost pages only, with the policy or without it. */
	for (page = 0; right && page < nr_pages; page++) {
		unsigned char want = pattern(page);

		for (i = 0; i < (size_t)nr_hit; i++)
			if (lost[i] == page)
				want = 0;
		right = is_pattern(saved + page * page_size, page, want);
	}
	free(saved);
	return right;
}

/* It tells of each page that becomes zero, also if it fails then. */
static int replace(size_t page)
{
	uint64_t next = 0;
	size_t nr = 0;
	int i, ret;

	for (i = 0; i < nr_hit; i++)
		nr += lost[i] / nr_per_huge == page / nr_per_huge;
	nr_zeroed = 0;
	ret = kept_replace(guest.fd, page * page_size, zeroed, &next);
	if (nr_zeroed == nr && !zeroed_wrong)
		return ret;
	printf("# told of %zu pages, not %zu\n", nr_zeroed, nr);
	errno = 0;
	return -1;
}

static bool mapping_is_as_saved(void)
{
	unsigned char *page_now = malloc(page_size);
	bool right = page_now;
	size_t page, i;

	zap();
	for (page = 0; right && page < nr_pages; page++) {
		unsigned char want = pattern(page);

		for (i = 0; i < (size_t)nr_hit; i++)
			if (lost[i] == page)
				want = 0;
		right = !read_guest(page_now, page * page_size, page_size) &&
			is_pattern(page_now, page, want);
	}
	free(page_now);
	return right;
}

static int ticking;

/* The next signal comes soon, but not always so soon that nothing gets done. */
static void tick(int sig)
{
	static int n;
	struct itimerval next = { .it_value.tv_usec = 20 + 7 * (n++ % 30) };

	(void)sig;
	if (__atomic_load_n(&ticking, __ATOMIC_RELAXED))
		setitimer(ITIMER_REAL, &next, NULL);
}

/* Nothing gets lost if signals interrupt the replacement of a hugepage again and again. */
static bool survives_signals(void)
{
	struct sigaction sa = { .sa_handler = tick, .sa_flags = SA_RESTART };
	bool right = true;
	size_t page;
	int rounds;

	sigaction(SIGALRM, &sa, NULL);
	nr_interrupted = 0;
	for (rounds = 0; right && nr_interrupted < NR_INTERRUPTED && rounds < 10000; rounds++) {
		__atomic_store_n(&ticking, 1, __ATOMIC_RELAXED);
		tick(SIGALRM);
		right = !kept_replace(guest.fd, 0, NULL, NULL);
		__atomic_store_n(&ticking, 0, __ATOMIC_RELAXED);
		for (page = 0; right && page < nr_per_huge; page++)
			right = is_pattern(page_at(page), page, pattern(page));
	}
	printf("# %d calls interrupted in %d rounds\n", nr_interrupted, rounds);
	return right && nr_interrupted;
}

static void count_run(void *arg, uint64_t offset, uint64_t length)
{
	(void)offset;
	*(size_t *)arg += length / page_size;
}

static size_t nr_on_map(void)
{
	size_t nr = 0;

	if (kept_read_map(0, guest.fd, count_run, NULL, &nr) != guest.kept)
		die("fdinfo");
	return nr;
}

/* A VMM that is restarted hears of all that was lost before. */
static bool restarted_knows(void)
{
	size_t page;

	kept_watch_stop(&watch);
	munmap(guest.map, guest.size);
	free(is_lost);
	nr_lost = 0;
	if (start(&watch, guest.fd))
		return false;
	for (page = 0; page < nr_pages; page++)
		if (is_lost[page] != (guest.kept && should_be_lost(page)))
			return false;
	return nr_on_map() == (guest.kept ? (size_t)nr_hit : 0);
}

/* Pages that were dropped from the list, but are still lost, come back. */
static bool list_is_read_again(void)
{
	size_t page, nr = nr_lost;

	for (page = 0; page < nr_pages; page++)
		is_lost[page] = 0;
	nr_lost = 0;
	return !kept_watch_read(&watch) && nr_lost == nr && (!guest.kept || list_is_right());
}

static bool fails_with(int ret, int error)
{
	if (ret != -1 || errno != error)
		printf("# returned %d, %s\n", ret, ret ? strerror(errno) : "success");
	return ret == -1 && errno == error;
}

static int is_not_page(void *arg, uint64_t offset, uint64_t length)
{
	uint64_t page = *(size_t *)arg * page_size;

	return page < offset || page >= offset + length;
}

/* Nothing is given up: the hugepage is not healed by a call for its other lost pages. */
static bool untold_page_is_kept(size_t page)
{
	return fails_with(kept_heal(guest.fd, page * page_size, is_not_page, &page),
			  guest.kept ? EAGAIN : EOPNOTSUPP) && saved_is_right();
}

/* Whether SIGBUS waits for one of the threads. */
static bool sigbus_is_pending(void)
{
	unsigned long long bits;
	bool pending = false;
	char line[128];
	glob_t tasks;
	size_t i;
	FILE *f;

	if (glob("/proc/self/task/*/status", 0, NULL, &tasks))
		die("/proc/self/task");
	for (i = 0; i < tasks.gl_pathc; i++) {
		f = fopen(tasks.gl_pathv[i], "r");
		while (f && fgets(line, sizeof(line), f))
			if (sscanf(line, "SigPnd: %llx", &bits) == 1 &&
			    bits & 1ULL << (SIGBUS - 1))
				pending = true;
		if (f)
			fclose(f);
	}
	globfree(&tasks);
	return pending;
}

/* The thread has the signal, but reads no map before the hugepage is replaced. */
static bool old_signal_adds_nothing(size_t page)
{
	int ret;

	pthread_mutex_lock(&watch.lock);
	hit(page);
	while (sigbus_is_pending())
		usleep(1000);
	ret = guest.kept ? kept_heal(guest.fd, page * page_size, NULL, NULL) :
			   kept_replace(guest.fd, page * page_size, NULL, NULL);
	memset(is_lost, 0, nr_pages);
	nr_lost = 0;
	pthread_mutex_unlock(&watch.lock);
	/* It looks before it stops. */
	kept_watch_stop(&watch);
	return !ret && !nr_lost;
}

static bool plain_file_is_refused(void)
{
	int fd = memfd_create("plain", MFD_CLOEXEC | MFD_HUGETLB);
	bool ok = fd >= 0 && fails_with(kept_heal(fd, 0, NULL, NULL), EOPNOTSUPP);

	close(fd);
	return ok;
}

static void start_test(void)
{
	size_t page, hugepage;
	int fd = kept_memfd("guest", 0, 0);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		die("memfd_create");
	close(fd);
	hugepage = (size_t)st.st_blksize;
	set_pool(hugepage, NR_HUGE);
	fd = kept_memfd("guest", MFD_CLOEXEC, NR_HUGE * hugepage);
	if (fd < 0 || start(&watch, fd))
		die("guest memory");
	nr_pages = guest.size / page_size;
	nr_per_huge = guest.hugepage / page_size;
	for (page = 0; page < nr_pages; page++)
		memset(page_at(page), pattern(page), page_size);
	printf("# the file has %s policy\n", guest.kept ? "the" : "no");
}

/* The thread takes no signals that are meant for the program. */
static bool thread_takes_no_other_signals(void)
{
	sigset_t set, pending;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	kill(getpid(), SIGUSR1);
	usleep(100000);
	sigpending(&pending);
	return sigismember(&pending, SIGUSR1) && sigwaitinfo(&set, NULL) == SIGUSR1 &&
	       !pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static int early_kill(void)
{
	return prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_EARLY;
}

static void *is_early(void *early)
{
	*(int *)early = early_kill();
	return NULL;
}

#define EXIT_EARLY	40

/* The guide warns of it: all that a thread with early kill makes has it, too. */
static bool early_kill_is_kept(void)
{
	pthread_t thread;
	int status, early;
	pid_t pid;

	pid = fork();
	if (!pid) {
		if (!prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) &&
		    !pthread_create(&thread, NULL, is_early, &early) &&
		    !pthread_join(thread, NULL) && early)
			execl("/proc/self/exe", "kept-memory", "early", NULL);
		_exit(0);
	}
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
	       WEXITSTATUS(status) == EXIT_EARLY;
}

#define EXIT_UNHARMED	41

/* A signal that was pending over execve(2): the handler is still there afterwards. */
static int restart(int fd)
{
	struct sigaction sa;
	sigset_t set;

	if (start(&watch, fd))
		return 1;
	sigpending(&set);
	if (!sigismember(&set, SIGBUS))
		return 1;
	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	sigaction(SIGBUS, NULL, &sa);
	return sa.sa_sigaction == on_sigbus ? EXIT_UNHARMED : 1;
}

static pid_t fork_restarter(int *ready)
{
	int pipes[2];
	char fd[16];
	sigset_t set;
	pid_t pid;

	if (pipe(pipes))
		die("pipe");
	pid = fork();
	if (!pid) {
		sigemptyset(&set);
		sigaddset(&set, SIGBUS);
		sigprocmask(SIG_BLOCK, &set, NULL);
		prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
		fcntl(guest.fd, F_SETFD, 0);
		snprintf(fd, sizeof(fd), "%d", guest.fd);
		if (write(pipes[1], "", 1) != 1)
			_exit(2);
		do
			sigpending(&set);
		while (!sigismember(&set, SIGBUS));
		execl("/proc/self/exe", "kept-memory", "restart", fd, NULL);
		_exit(2);
	}
	close(pipes[1]);
	*ready = pipes[0];
	return pid;
}

static bool restarter_is_unharmed(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		return false;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != EXIT_UNHARMED)
		printf("# status %#x\n", status);
	return WIFEXITED(status) && WEXITSTATUS(status) == EXIT_UNHARMED;
}

int main(int argc, char **argv)
{
	size_t huge, i;
	pid_t pid;
	int ready;
	char byte;
	bool ok;

	if (argc > 2)
		return restart(atoi(argv[2]));
	if (argc > 1)
		return early_kill() ? EXIT_EARLY : 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("TAP version 13\n1..23\n");
	start_test();
	result(list_is_right() && both_read_all(), "without_errors_all_is_there");
	set_pool(guest.hugepage, NR_HUGE + 1);
	result(survives_signals(), "signals_lose_no_contents");
	set_pool(guest.hugepage, NR_HUGE);

	/* Only the thread for early kill gets the signals, whatever the system's default. */
	result(prctl(PR_MCE_KILL_GET, 0, 0, 0, 0) == PR_MCE_KILL_LATE, "the_caller_has_late_kill");
	result(thread_takes_no_other_signals(), "the_thread_blocks_other_signals");
	result(early_kill_is_kept(), "threads_and_execve_keep_early_kill");
	if (!write_number("/proc/sys/vm/memory_failure_early_kill", 1))
		die("memory_failure_early_kill");
	hit(2 * nr_per_huge);
	result(list_gets_right(), "the_thread_tells_of_a_lost_page");

	/* Others near and far, in all hugepages but the last, or one in that */
	pid = fork_restarter(&ready);
	if (read(ready, &byte, 1) != 1)
		die("read");
	hit(guest.kept ? lost[0] + 1 : 3 * nr_per_huge + 7);
	for (i = 2; guest.kept && i < NR_LOST; i++)
		hit((i * (nr_pages - nr_per_huge) / NR_LOST) | 1);
	result(list_gets_right(), "the_thread_tells_of_all_of_a_burst");
	result(restarter_is_unharmed(pid), "a_signal_from_before_execve_is_harmless");

	result(both_read_all(), "two_threads_read_what_is_healthy");
	result(both_repeat(), "two_threads_meet_lost_pages_all_the_time");
	result(copies_end_there(), "a_copy_ends_at_the_lost_page");
	result(unguarded_is_fatal(false), "an_access_without_a_guard_is_fatal");
	result(unguarded_is_fatal(true), "it_is_fatal_after_one_with_a_guard");
	result(both_read_all() && list_is_right(), "then_all_is_as_before");
	result(saved_is_right(), "what_is_saved_lacks_the_lost_pages_only");
	result(restarted_knows(), "a_restarted_program_knows_what_is_lost");
	result(list_is_read_again(), "the_map_can_be_read_again");

	result(plain_file_is_refused(), "a_file_without_the_policy_does_not_heal");
	result(untold_page_is_kept(lost[1]), "a_page_that_may_not_be_zeroed_is_kept");
	/* The pool has none yet. */
	result(fails_with(replace(lost[0]), ENOSPC) && saved_is_right(),
	       "without_spares_nothing_is_replaced");

	set_pool(guest.hugepage, 2 * NR_HUGE);
	/* The first by a copy, the others by the kernel if it can. */
	ok = !replace(lost[0]);
	for (huge = 0; ok && huge < NR_HUGE; huge++)
		if (guest.kept)
			ok = !kept_heal(guest.fd, huge * guest.hugepage + 5, NULL, NULL);
		else if (huge == 3)
			ok = !replace(huge * nr_per_huge);
	result(ok && !nr_on_map(), "damaged_hugepages_are_replaced");
	result(mapping_is_as_saved(), "the_new_ones_lack_the_lost_pages_only");

	set_pool(guest.hugepage, 2 * NR_HUGE + 1);
	result(old_signal_adds_nothing(1), "a_signal_from_before_that_adds_nothing");

	write_number("/proc/sys/vm/memory_failure_early_kill", 0);
	munmap(guest.map, guest.size);
	close(guest.fd);
	set_pool(guest.hugepage, 0);
	/* Not all are free yet. After a machine check this is refused. */
	usleep(200000);
	for (i = 0; i < (size_t)nr_hit; i++)
		if (!write_number(HWPOISON "unpoison-pfn", pfn[i]))
			write_number(HWPOISON "unpoison-pfn", pfn[i] & -nr_per_huge);
	return nr_failed > 0;
}
