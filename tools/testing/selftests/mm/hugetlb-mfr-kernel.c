// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel itself runs into lost pages of hugepages, and outlives it.
 *
 * A copy from user space that meets an uncorrected error fails with -EFAULT, however
 * often that happens, in however many pages, and whether or not the thread ever returns
 * to user mode.  read(2) of a hugetlb file ends before the error, and then fails with
 * -EIO.  In either case the page is lost from then on.
 *
 * These are real machine checks, at the very instructions that load from the page.  They
 * need x86, and a virtual machine that HUGETLB_MFR_AT leads out of: mce-at, which stops
 * the machine at an instruction.  The test learns these instructions beforehand: it does
 * the same where it faults, and a trace event names the instructions.
 *
 * The fixtures:
 *   copyin	system calls and a vhost worker copy from a page that is lost
 *   readout	read(2) copies to user space, from a page that nobody knows to be lost
 *   replaced	a hugepage that is healed is copied, with a page that is lost as well
 */

#define _GNU_SOURCE
#include "mfr_harness.h"
#include <linux/futex.h>
#include <linux/magic.h>
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>

#define FAULTS		TRACING "/events/exceptions/page_fault_kernel/enable"

/* Where x86-64 maps all memory, unless it is told to choose that at random. */
#define DIRECT_MAP	0xffff888000000000UL

#define LINE_SIZE	64
#define MAX_INSNS	16

/* Hugepages in the file: so many pages can be lost without having been so before. */
#define NR_VICTIMS	8

/* Where in a hugepage, so that there is room on both sides. */
#define VICTIM		5

/* Two machine checks each */
#define NR_REPEATS	300
/* Lines in the log about them: ten in five seconds, from each of four sources */
#define MAX_LINES(seconds)	(4 * 10 * ((seconds) / 5 + 2))

/* The instructions of the kernel that load from a page. */
struct insns {
	unsigned long ip[MAX_INSNS];
	unsigned int nr;
};

/* Let the kernel use @page, whose first word is @word beforehand. */
struct use {
	long (*call)(char *page, long arg);
	long arg;
	unsigned int word;
};

/* @verb is "at", or "then", for what goes bad with the first machine check. */
static bool make_bad(const char *verb, struct insns *insns, unsigned long va, size_t len,
		     unsigned long pa)
{
	char question[128];
	unsigned int i;

	undo->mce_seen = true;
	for (i = 0; i < insns->nr; i++) {
		snprintf(question, sizeof(question), "%s %lx %lx %zx %lx\n", verb,
			 insns->ip[i], va, len, pa);
		if (ask_mce_at(question))
			return false;
	}
	return true;
}

/* How many machine checks were there? */
static long make_good(void)
{
	return ask_mce_at("clear\n");
}

static bool add_insn(struct insns *insns, unsigned long ip)
{
	unsigned int i;

	for (i = 0; i < insns->nr; i++)
		if (insns->ip[i] == ip)
			return true;
	if (insns->nr == MAX_INSNS)
		return false;
	insns->ip[insns->nr++] = ip;
	return true;
}

/* A field of an event, of which the option "fields" shows the decimal value, too. */
static unsigned long traced(const char *line, const char *field)
{
	const char *p = strstr(line, field);

	p = p ? strchr(p, '(') : NULL;
	return p ? strtol(p + 1, NULL, 10) : 0;
}

static bool trace_faults(bool on)
{
	if (on && mkdir(TRACING, 0700) && errno != EEXIST)
		return false;
	if (on)
		return write_text(TRACING "/trace", "") &&
		       write_text(TRACING "/trace_options", "fields") &&
		       write_text(FAULTS, "1");
	return write_text(FAULTS, "0");
}

/* Collect the instructions that have faulted at [@va, @va + @len). */
static bool get_traced(struct insns *insns, unsigned long va, size_t len)
{
	FILE *f = fopen(TRACING "/trace", "r");
	char line[512];
	bool ok = f;

	while (f && fgets(line, sizeof(line), f))
		if (strstr(line, "page_fault_kernel:") &&
		    traced(line, " address=") - va < len)
			ok &= add_insn(insns, traced(line, " ip="));
	if (f)
		fclose(f);
	return ok;
}

/*
 * Learn which instructions access the page.  Do the same with @nr pages which the kernel
 * can't access, or, if @writes, only read: then it is the ones that read and write.
 */
static void learn(struct __test_metadata *_metadata, const struct use *use, int nr,
		  bool writes, struct insns *insns)
{
	size_t len = 8 * psize();
	char *map, *page;

	map = mmap(NULL, len, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	ASSERT_NE(MAP_FAILED, map);
	page = map + 2 * psize();
	memcpy(page, &use->word, sizeof(use->word));
	ASSERT_EQ(0, mprotect(page, nr * psize(), writes ? PROT_READ : PROT_NONE));

	ASSERT_TRUE(trace_faults(true));
	use->call(page, use->arg);
	ASSERT_TRUE(trace_faults(false));
	ASSERT_TRUE(get_traced(insns, (uintptr_t)page, nr * psize()));
	ASSERT_LT(0, insns->nr);
	munmap(map, len);
}

static const struct injector by_kernel = {
	.inject = inject_corrupt_pfn,
	.code = BUS_MCEERR_AO,
	.repeat_ret = -EHWPOISON,
	.is_hw = true,
};

static void setup_victims(struct __test_metadata *_metadata, struct subject *s,
			  unsigned int flags)
{
	if (mce_at < 0)
		SKIP(return, "needs a virtual machine with mce-at");
	if (flags && !kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, s, SZ_2M, &by_kernel, NR_VICTIMS);
	if (_metadata->exit_code)
		return;
	if (!trace_faults(true) || !trace_faults(false))
		SKIP(return, "no tracing of page faults in " TRACING);
	open_subject(_metadata, s, flags);
}

/* The error is handled, by whoever: now or soon, the page is lost. */
static void expect_lost(struct __test_metadata *_metadata, struct subject *s)
{
	wait_until(hardware_corrupted() == s->corrupted + s->nr_lost * (psize() >> 10), 10000);
	expect_corrupted(_metadata, s);
}

/*
 * Copies from user space
 */

FIXTURE(copyin)
{
	struct subject s;
	struct insns insns;	/* that are the first to meet the error, */
	struct insns later;	/* and those that run into it afterwards */
	bool known;		/* the error, before all that */
};

FIXTURE_VARIANT(copyin)
{
	unsigned int flags;
	bool known;
};

FIXTURE_VARIANT_ADD(copyin, plain) { };
FIXTURE_VARIANT_ADD(copyin, kept) { .flags = MFD_MF_KEEP_UE_MAPPED };
FIXTURE_VARIANT_ADD(copyin, known) { .flags = MFD_MF_KEEP_UE_MAPPED, .known = true };

FIXTURE_SETUP(copyin)
{
	self->known = variant->known;
	setup_victims(_metadata, &self->s, variant->flags);
}

FIXTURE_TEARDOWN_PARENT(copyin)
{
	make_good();
	teardown_subject(_metadata, &self->s);
}

/* Raw page VICTIM of hugepage @i is lost: now, or when the kernel runs into that. */
static char *prepare_victim(struct __test_metadata *_metadata,
			    FIXTURE_DATA(copyin) * self, unsigned int i, unsigned int word)
{
	unsigned long nr = i * self->s.nr_raw + VICTIM;
	char *page = raw_page(&self->s, nr);

	memcpy(page, &word, sizeof(word));
	if (self->known)
		lose(_metadata, &self->s, nr);
	else
		note_lost(_metadata, &self->s, nr);
	return page;
}

/* Have @len bytes from @va on, in @pfn, raise a machine check when the kernel loads them. */
static void arm_pfn(struct __test_metadata *_metadata, FIXTURE_DATA(copyin) * self,
		    char *va, size_t len, unsigned long pfn)
{
	unsigned long pa = pfn * psize() + (uintptr_t)va % psize();

	ASSERT_TRUE(make_bad("at", &self->insns, (uintptr_t)va, len, pa));
	ASSERT_TRUE(make_bad("then", &self->later, (uintptr_t)va, len, pa));
}

static void arm(struct __test_metadata *_metadata, FIXTURE_DATA(copyin) * self,
		char *va, size_t len)
{
	arm_pfn(_metadata, self, va, len,
		raw_pfn(&self->s, (va - self->s.map) / psize()));
}

static void expect_met(struct __test_metadata *_metadata, FIXTURE_DATA(copyin) * self,
		       long nr)
{
	EXPECT_LE(nr, make_good());
	expect_lost(_metadata, &self->s);
}

/* Use the page VICTIM of hugepage @i. Its first word is lost. */
static void use_victim(struct __test_metadata *_metadata, FIXTURE_DATA(copyin) * self,
		       const struct use *use, unsigned int i, long result)
{
	char *page = prepare_victim(_metadata, self, i, use->word);

	arm(_metadata, self, page, LINE_SIZE);
	EXPECT_EQ(result, use->call(page, use->arg));
	expect_met(_metadata, self, 1);
}

static long futex(char *page, long op, unsigned int val, unsigned int val2, char *page2,
		  unsigned int val3)
{
	return syscall(SYS_futex, page, op | FUTEX_PRIVATE_FLAG, val, (long)val2, page2,
		       val3) < 0 ? -errno : 0;
}

static long wake_op(char *page, long op)
{
	unsigned int healthy = 0;

	return futex((char *)&healthy, FUTEX_WAKE_OP, 0, 0, page,
		     FUTEX_OP(op, 1, FUTEX_OP_CMP_EQ, 0));
}

static long lock_pi(char *page, long arg)
{
	return futex(page, FUTEX_LOCK_PI, 0, 0, NULL, 0);
}

static long unlock_pi(char *page, long arg)
{
	return futex(page, FUTEX_UNLOCK_PI, 0, 0, NULL, 0);
}

static long cmp_requeue(char *page, long arg)
{
	unsigned int healthy = 0;

	return futex(page, FUTEX_CMP_REQUEUE, 1, 1, (char *)&healthy, 0);
}

static long wait_op(char *page, long arg)
{
	return futex(page, FUTEX_WAIT, 0, 0, NULL, 0);
}

static const struct use uses[] = {
	{ wake_op, FUTEX_OP_SET }, { wake_op, FUTEX_OP_ADD }, { wake_op, FUTEX_OP_OR },
	{ wake_op, FUTEX_OP_ANDN }, { wake_op, FUTEX_OP_XOR },
};

/*
 * The word goes bad when the kernel reads it for the first time, or, if @writes, when an
 * instruction that changes it does so.  It is bad when the kernel looks again.
 */
static void lose_word(struct __test_metadata *_metadata, FIXTURE_DATA(copyin) * self,
		      const struct use *use, bool writes, unsigned int i)
{
	struct use get_user = { .call = unlock_pi };

	self->insns.nr = 0;
	self->later.nr = 0;
	learn(_metadata, use, 1, writes, &self->insns);
	learn(_metadata, use, 1, false, &self->later);
	learn(_metadata, &get_user, 1, false, &self->later);
	use_victim(_metadata, self, use, i, -EFAULT);
}

TEST_F_TIMEOUT(copyin, FUTEX_WAKE_OP_fails, SLOW)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(uses); i++)
		lose_word(_metadata, self, &uses[i], true, i);
}

TEST_F_TIMEOUT(copyin, FUTEX_LOCK_PI_fails, SLOW)
{
	struct use use = { .call = lock_pi };

	lose_word(_metadata, self, &use, false, 0);
	lose_word(_metadata, self, &use, true, 1);
}

TEST_F_TIMEOUT(copyin, FUTEX_UNLOCK_PI_fails, SLOW)
{
	struct use use = { .call = unlock_pi, .word = syscall(SYS_gettid) };

	lose_word(_metadata, self, &use, false, 0);
	lose_word(_metadata, self, &use, true, 1);
}

TEST_F_TIMEOUT(copyin, FUTEX_WAIT_and_CMP_REQUEUE_fail, SLOW)
{
	struct use wait = { .call = wait_op };
	struct use requeue = { .call = cmp_requeue };

	lose_word(_metadata, self, &wait, false, 0);
	lose_word(_metadata, self, &requeue, false, 1);
}

#define NR_SENDS	6

/* Send NR_SENDS pages at once: @page, and others @step pages further on. */
static long send_pages(char *page, long step)
{
	struct io_uring_params params = {};
	unsigned int *tail, *array, *head, i;
	struct io_uring_cqe *cqes;
	struct io_uring_sqe *sqes;
	long nr_failed = 0;
	int ring, pair[2];
	char *mem;

	ring = syscall(SYS_io_uring_setup, 8, &params);
	if (ring < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return -errno;
	/* Since Linux 5.4 one mapping shows both rings. */
	mem = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		   IORING_OFF_SQ_RING);
	sqes = mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, ring,
		    IORING_OFF_SQES);
	if (mem == MAP_FAILED || sqes == MAP_FAILED)
		return -errno;
	tail = (unsigned int *)(mem + params.sq_off.tail);
	array = (unsigned int *)(mem + params.sq_off.array);
	head = (unsigned int *)(mem + params.cq_off.head);
	cqes = (struct io_uring_cqe *)(mem + params.cq_off.cqes);

	for (i = 0; i < NR_SENDS; i++) {
		sqes[i] = (struct io_uring_sqe) {
			.opcode = IORING_OP_SEND,
			.fd = pair[0],
			.addr = (uintptr_t)(page + i % 2 * step * psize()),
			.len = psize(),
			.msg_flags = MSG_DONTWAIT,
		};
		array[i] = i;
	}
	__atomic_store_n(tail, *tail + NR_SENDS, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, NR_SENDS, NR_SENDS, IORING_ENTER_GETEVENTS,
		    NULL, 0) != NR_SENDS)
		return -errno;
	for (i = 0; i < NR_SENDS; i++)
		nr_failed += cqes[*head + i].res == -EFAULT;

	munmap(mem, psize());
	munmap(sqes, psize());
	close(pair[0]);
	close(pair[1]);
	close(ring);
	return nr_failed;
}

TEST_F_TIMEOUT(copyin, six_sends_of_a_lost_page_fail, SLOW)
{
	struct use use = { .call = send_pages };

	learn(_metadata, &use, 1, false, &self->insns);
	use_victim(_metadata, self, &use, 0, NR_SENDS);
}

TEST_F_TIMEOUT(copyin, sends_of_two_lost_pages_fail, SLOW)
{
	struct use use = { .call = send_pages, .arg = 1 };
	char *page[2];

	learn(_metadata, &use, 2, false, &self->insns);
	page[0] = prepare_victim(_metadata, self, 0, 0);
	page[1] = prepare_victim(_metadata, self, 1, 0);
	arm(_metadata, self, page[0], LINE_SIZE);
	arm(_metadata, self, page[1], LINE_SIZE);
	EXPECT_EQ(NR_SENDS, send_pages(page[0], (page[1] - page[0]) / psize()));
	expect_met(_metadata, self, 2);
}

/* The bytes that there are in the page behind a copied healthy one. */
#define BEFORE		128

static long write_some(int fd, char *page, long before)
{
	long ret = write(fd, page - before, before + psize());

	ret = ret < 0 ? -errno : ret;
	close(fd);
	return ret;
}

static long write_tmpfs(char *page, long before)
{
	return write_some(memfd_create("copy", 0), page, before);
}

static long write_vector(char *page, long before)
{
	struct iovec iov[] = {
		{ .iov_base = page - before, .iov_len = before },
		{ .iov_base = page, .iov_len = psize() },
		{ .iov_base = page - before, .iov_len = before },
	};
	int fd = memfd_create("copy", 0);
	long ret = writev(fd, iov, ARRAY_SIZE(iov));

	ret = ret < 0 ? -errno : ret;
	close(fd);
	return ret;
}

static long write_pipe(char *page, long before)
{
	int pipefd[2];
	long ret;

	if (pipe(pipefd))
		return -errno;
	ret = write(pipefd[1], page - before, before + 2 * psize());
	ret = ret < 0 ? -errno : ret;
	close(pipefd[0]);
	close(pipefd[1]);
	return ret;
}

TEST_F_TIMEOUT(copyin, write_of_a_lost_page_fails, SLOW)
{
	struct use use = { .call = write_tmpfs };

	learn(_metadata, &use, 1, false, &self->insns);
	use_victim(_metadata, self, &use, 0, -EFAULT);
}

TEST_F_TIMEOUT(copyin, write_ends_at_the_lost_line, SLOW)
{
	const unsigned int offset = 4 * LINE_SIZE;
	struct use use = { .call = write_tmpfs, .arg = BEFORE };
	/* The copy may be retried from the start of the line. */
	struct use again = { .call = write_tmpfs, .arg = -(long)offset };
	char *page;

	learn(_metadata, &use, 1, false, &self->insns);
	learn(_metadata, &again, 1, false, &self->insns);
	page = prepare_victim(_metadata, self, 0, 0);
	arm(_metadata, self, page + offset, LINE_SIZE);
	EXPECT_EQ(BEFORE + offset, write_tmpfs(page, BEFORE));
	expect_met(_metadata, self, 1);
}

/* Seconds: a write that ends takes less. */
#define LOOP		60

TEST_F_TIMEOUT(copyin, write_to_btrfs_ends_at_the_lost_line, SLOW)
{
	const long offset = psize() / 2, end = psize() + offset;
	struct use use = { .call = write_tmpfs, .arg = BEFORE };
	const char *dir = getenv("HUGETLB_MFR_BTRFS");
	unsigned int left;
	struct statfs st;
	pid_t child;
	char *page;
	long ret;
	int fd;

	if (!dir || statfs(dir, &st) || st.f_type != BTRFS_SUPER_MAGIC)
		SKIP(return, "needs btrfs in the directory HUGETLB_MFR_BTRFS");
	fd = open(dir, O_TMPFILE | O_RDWR, 0600);
	ASSERT_LE(0, fd);
	/* The copy is the same, but btrfs looks at the page first. */
	learn(_metadata, &use, 1, false, &self->insns);
	page = prepare_victim(_metadata, self, 0, 0);
	arm(_metadata, self, page + offset, LINE_SIZE);

	/* Nothing else would end a loop. */
	child = fork();
	ASSERT_LE(0, child);
	if (!child) {
		/* The error is its own, too, and interrupts that. */
		for (left = LOOP; left; )
			left = sleep(left);
		make_good();
		_exit(0);
	}
	ret = write_some(fd, page, psize());
	kill(child, SIGKILL);
	EXPECT_EQ(child, waitpid(child, NULL, 0));

	EXPECT_GE(end, ret);
	/* A hugepage that isn't kept may be unmapped before it is copied. */
	if (variant->flags)
		EXPECT_LE(end, ret);
	expect_met(_metadata, self, 1);
}

TEST_F_TIMEOUT(copyin, writev_ends_before_the_lost_page, SLOW)
{
	struct use use = { .call = write_vector, .arg = BEFORE };

	learn(_metadata, &use, 1, false, &self->insns);
	use_victim(_metadata, self, &use, 0, BEFORE);
}

TEST_F_TIMEOUT(copyin, write_to_a_pipe_ends_before_lost_pages, SLOW)
{
	struct use use = { .call = write_pipe, .arg = psize() };
	unsigned long nr = VICTIM + 1;

	learn(_metadata, &use, 2, false, &self->insns);
	/* The page behind it is bad, too, and nobody gets that far. */
	arm(_metadata, self, raw_page(&self->s, nr), LINE_SIZE);
	use_victim(_metadata, self, &use, 0, psize());
}

/* In the log of the kernel, from where it is now */
static int open_log(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);

	lseek(fd, 0, SEEK_END);
	return fd;
}

static long nr_logged(int fd)
{
	char buf[1024];
	long nr = 0;

	while (read(fd, buf, sizeof(buf)) > 0 || errno == EPIPE)
		nr++;
	return nr;
}

/* A page of the kernel's, which stays mapped when it is lost. */
static char *map_ring(int *ring)
{
	struct io_uring_params params = {};

	*ring = syscall(SYS_io_uring_setup, 1, &params);
	return mmap(NULL, psize(), PROT_READ | PROT_WRITE, MAP_SHARED, *ring,
		    IORING_OFF_SQ_RING);
}

TEST_F_TIMEOUT(copyin, repeats_do_not_flood_the_log, SLOW)
{
	struct use use = { .call = wait_op };
	time_t begin = time(NULL);
	int i, ring, fd = open_log();
	char *page;

	ASSERT_LE(0, fd);
	learn(_metadata, &use, 1, false, &self->insns);
	page = map_ring(&ring);
	ASSERT_NE(MAP_FAILED, page);
	if (variant->flags) {
		munmap(page, psize());
		page = prepare_victim(_metadata, self, 0, 0);
		arm(_metadata, self, page, LINE_SIZE);
	} else {
		arm_pfn(_metadata, self, page, LINE_SIZE, mapped_pfn(page));
		self->s.corrupted += psize() >> 10;
	}
	for (i = 0; i < NR_REPEATS; i++)
		EXPECT_EQ(-EFAULT, use.call(page, use.arg))
			break;
	expect_met(_metadata, self, 2 * NR_REPEATS);
	EXPECT_GE(MAX_LINES(time(NULL) - begin), nr_logged(fd));
	close(ring);
	close(fd);
}

/*
 * A device of vhost, whose worker takes packets from a queue of one process.  To the
 * worker what the queue is made of is in one region of memory, the packets' headers in
 * another one.
 */
#define NR_DESC		16
#define GPA_PACKETS	BIT_ULL(32)
#define GUEST_CID	4711

struct vhost {
	int dev;
	int kick;
	int err;
	int call;
	struct vring vring;
	char *mem;
};

/* Two of them lie side by side. */
static size_t vring_len(void)
{
	return 2 * psize();
}

static bool open_vhost(struct vhost *v, char *packets, size_t len)
{
	__u64 features = BIT_ULL(VIRTIO_F_VERSION_1), cid = GUEST_CID;
	struct vhost_memory *memory;
	int i, on = 1;

	v->dev = open("/dev/vhost-vsock", O_RDWR);
	v->mem = mmap(NULL, 2 * vring_len(), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	memory = calloc(1, sizeof(*memory) + 2 * sizeof(*memory->regions));
	if (v->dev < 0 || v->mem == MAP_FAILED || !memory)
		return false;
	memory->nregions = 2;
	memory->regions[0].memory_size = 2 * vring_len();
	memory->regions[0].userspace_addr = (uintptr_t)v->mem;
	memory->regions[1].guest_phys_addr = GPA_PACKETS;
	memory->regions[1].memory_size = len;
	memory->regions[1].userspace_addr = (uintptr_t)packets;

	v->kick = eventfd(0, 0);
	v->err = eventfd(0, 0);
	v->call = eventfd(0, 0);
	if (ioctl(v->dev, VHOST_SET_OWNER) ||
	    ioctl(v->dev, VHOST_SET_FEATURES, &features) ||
	    ioctl(v->dev, VHOST_SET_MEM_TABLE, memory) ||
	    ioctl(v->dev, VHOST_VSOCK_SET_GUEST_CID, &cid))
		return false;
	free(memory);
	for (i = 0; i < 2; i++) {
		struct vhost_vring_state state = { .index = i };
		struct vhost_vring_file kick = { .index = i, .fd = v->kick };
		struct vhost_vring_file call = { .index = i, .fd = v->call };
		struct vhost_vring_file err = { .index = i, .fd = v->err };
		struct vhost_vring_addr addr = { .index = i };

		/* The second one is for what the guest sends. */
		vring_init(&v->vring, NR_DESC, v->mem + i * vring_len(), psize());
		addr.desc_user_addr = (uintptr_t)v->vring.desc;
		addr.avail_user_addr = (uintptr_t)v->vring.avail;
		addr.used_user_addr = (uintptr_t)v->vring.used;
		if (ioctl(v->dev, VHOST_SET_VRING_BASE, &state))
			return false;
		state.num = NR_DESC;
		if (ioctl(v->dev, VHOST_SET_VRING_NUM, &state) ||
		    ioctl(v->dev, VHOST_SET_VRING_ADDR, &addr) ||
		    (i == 1 && ioctl(v->dev, VHOST_SET_VRING_KICK, &kick)) ||
		    ioctl(v->dev, VHOST_SET_VRING_CALL, &call) ||
		    ioctl(v->dev, VHOST_SET_VRING_ERR, &err))
			return false;
	}
	return !ioctl(v->dev, VHOST_VSOCK_SET_RUNNING, &on);
}

static void close_vhost(struct vhost *v)
{
	close(v->dev);
	close(v->kick);
	close(v->err);
	close(v->call);
	munmap(v->mem, 2 * vring_len());
}

/* Offer the packet at @gpa, and wait for @eventfd, which counts: that, or 0. */
static int offer_packet(struct vhost *v, __u64 gpa, int eventfd)
{
	struct pollfd pfd = { .fd = eventfd, .events = POLLIN };
	unsigned int nr = v->vring.avail->idx % NR_DESC;
	__u64 one = 1;

	v->vring.desc[nr] = (struct vring_desc) {
		.addr = gpa,
		.len = sizeof(struct virtio_vsock_hdr),
	};
	v->vring.avail->ring[nr] = nr;
	__atomic_store_n(&v->vring.avail->idx, v->vring.avail->idx + 1, __ATOMIC_RELEASE);
	if (write(v->kick, &one, sizeof(one)) != sizeof(one))
		return -errno;
	while (poll(&pfd, 1, 20000) < 0)
		if (errno != EINTR)
			return -errno;
	if (!(pfd.revents & POLLIN))
		return 0;
	return read(eventfd, &one, sizeof(one)) == sizeof(one) ? one : -errno;
}

static long send_header(char *page, long arg)
{
	struct vhost v;
	long ret;

	if (!open_vhost(&v, page, psize()))
		return -errno;
	ret = offer_packet(&v, GPA_PACKETS, v.err);
	close_vhost(&v);
	return ret;
}

#define NR_KICKS	12

TEST_F_TIMEOUT(copyin, a_vhost_worker_goes_on, SLOW)
{
	struct use use = { .call = send_header };
	struct subject *s = &self->s;
	struct vhost v;
	char *page[2];
	int i;

	if (access("/dev/vhost-vsock", R_OK | W_OK))
		SKIP(return, "needs CONFIG_VHOST_VSOCK");
	learn(_metadata, &use, 1, false, &self->insns);
	page[0] = prepare_victim(_metadata, self, 0, 0);
	page[1] = prepare_victim(_metadata, self, 1, 0);
	ASSERT_TRUE(open_vhost(&v, s->map, s->nr_huge * s->size));
	arm(_metadata, self, page[0], LINE_SIZE);
	arm(_metadata, self, page[1], LINE_SIZE);
	for (i = 0; i < NR_KICKS; i++)
		EXPECT_LT(0, offer_packet(&v, GPA_PACKETS + (page[i % 2] - s->map), v.err))
			break;
	expect_met(_metadata, self, 2);
	EXPECT_EQ(0, v.vring.used->idx);

	/* No thread waits in this futex, so it is only taken. */
	memset(s->map + 2 * s->size, 0, sizeof(struct virtio_vsock_hdr));
	EXPECT_EQ(1, offer_packet(&v, GPA_PACKETS + 2 * s->size, v.call));
	EXPECT_EQ(1, v.vring.used->idx);
	close_vhost(&v);
}

/*
 * Copies to user space
 */

FIXTURE(readout)
{
	struct subject s;
	struct insns insns;
};

FIXTURE_VARIANT(readout)
{
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(readout, plain) { };
FIXTURE_VARIANT_ADD(readout, kept) { .flags = MFD_MF_KEEP_UE_MAPPED };

FIXTURE_SETUP(readout)
{
	setup_victims(_metadata, &self->s, variant->flags);
}

FIXTURE_TEARDOWN_PARENT(readout)
{
	make_good();
	teardown_subject(_metadata, &self->s);
}

/* A copy faults at the same instruction, whether it reads or writes. */
static void learn_to_read(struct __test_metadata *_metadata, struct subject *s,
			  struct insns *insns)
{
	char *page = mmap(NULL, psize(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, page);
	ASSERT_TRUE(trace_faults(true));
	EXPECT_EQ(-1, pread(s->fd, page, psize(), 0));
	ASSERT_TRUE(trace_faults(false));
	ASSERT_TRUE(get_traced(insns, (uintptr_t)page, psize()));
	ASSERT_LT(0, insns->nr);
	munmap(page, psize());
}

TEST_F_TIMEOUT(readout, read_ends_before_an_unknown_error, SLOW)
{
	unsigned long pa, nr = VICTIM;
	struct subject *s = &self->s;
	off_t start = nr * psize() - BEFORE;
	char buf[2 * BEFORE], was[BEFORE + LINE_SIZE];

	memcpy(was, s->map + start, sizeof(was));
	learn_to_read(_metadata, s, &self->insns);
	pa = raw_pfn(s, nr) * psize() + LINE_SIZE;
	ASSERT_TRUE(make_bad("at", &self->insns, DIRECT_MAP + pa, LINE_SIZE, pa));
	note_lost(_metadata, s, nr);

	EXPECT_EQ(sizeof(was), pread(s->fd, buf, sizeof(buf), start));
	EXPECT_EQ(0, memcmp(buf, was, sizeof(was)));
	EXPECT_ERRNO(EIO, pread(s->fd, buf, sizeof(buf), start + sizeof(was)));
	EXPECT_LT(0, make_good());
	expect_lost(_metadata, s);
}

TEST_F_TIMEOUT(readout, read_fails_at_an_unknown_error, SLOW)
{
	unsigned long pa, nr = VICTIM;
	struct subject *s = &self->s;
	char buf[2 * BEFORE];

	learn_to_read(_metadata, s, &self->insns);
	pa = raw_pfn(s, nr) * psize();
	ASSERT_TRUE(make_bad("at", &self->insns, DIRECT_MAP + pa, LINE_SIZE, pa));
	note_lost(_metadata, s, nr);

	EXPECT_ERRNO(EIO, pread(s->fd, buf, sizeof(buf), nr * psize()));
	EXPECT_LT(0, make_good());
	expect_lost(_metadata, s);
	/* The next page is none of its business. */
	EXPECT_EQ(sizeof(buf), pread(s->fd, buf, sizeof(buf), (nr + 1) * psize()));
}

/*
 * Copies to another hugepage
 */

FIXTURE(replaced)
{
	struct subject s;
	struct insns insns;
};

FIXTURE_SETUP(replaced)
{
	setup_victims(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
	if (!_metadata->exit_code && !need_more_hugepages(&self->s, 1))
		SKIP(return, "can't get another hugepage");
}

FIXTURE_TEARDOWN_PARENT(replaced)
{
	make_good();
	teardown_subject(_metadata, &self->s);
}

static unsigned long symbol(const char *name)
{
	FILE *f = fopen("/proc/kallsyms", "r");
	unsigned long addr, found = 0;
	char line[512], is[256];

	while (f && !found && fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx %*c %255s", &addr, is) == 2 && !strcmp(is, name))
			found = addr;
	if (f)
		fclose(f);
	return found;
}

/* Nothing in this copy faults that could be traced: find its REP MOVSB. */
static void learn_to_copy(struct __test_metadata *_metadata, struct insns *insns)
{
	unsigned long ip = symbol("copy_mc_enhanced_fast_string");

	ASSERT_NE(0, ip);
	/* Behind two MOV, with or without ENDBR64 in front of these. */
	ASSERT_TRUE(add_insn(insns, ip + 6));
	ASSERT_TRUE(add_insn(insns, ip + 10));
}

static int give_up_page(struct subject *s, unsigned long nr)
{
	return fallocate(s->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, nr * psize(),
			 psize());
}

TEST_F_TIMEOUT(replaced, not_if_the_copy_meets_an_error, SLOW)
{
	const unsigned long known = VICTIM, unknown = 2 * VICTIM;
	struct subject *s = &self->s;
	unsigned long pa, head = s->head[0];
	char *was = malloc(s->size);

	ASSERT_NE(NULL, was);
	memcpy(was, s->map, s->size);
	lose(_metadata, s, known);
	learn_to_copy(_metadata, &self->insns);
	pa = raw_pfn(s, unknown) * psize();
	ASSERT_TRUE(make_bad("at", &self->insns, DIRECT_MAP + pa, psize(), pa));
	note_lost(_metadata, s, unknown);

	injecting = true;
	sigbus.nr = 0;
	EXPECT_ERRNO(EIO, give_up_page(s, known));
	EXPECT_EQ(1, make_good());
	expect_lost(_metadata, s);
	expect_sigbus(_metadata, BUS_MCEERR_AO, raw_page(s, unknown), pshift());
	injecting = false;
	EXPECT_EQ(head, mapped_pfn(s->map));
	EXPECT_EQ(0, memcmp(was, s->map, s->size));

	/* Nothing else is in the way. */
	EXPECT_EQ(0, give_up_page(s, unknown));
	EXPECT_NE(head, mapped_pfn(s->map));
	memset(was + known * psize(), 0, psize());
	memset(was + unknown * psize(), 0, psize());
	EXPECT_EQ(0, memcmp(was, s->map, s->size));
	free(was);
}

TEST_HARNESS_MAIN
