/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Machine checks that are real to the kernel, for programs that run in a virtual
 * machine of QEMU's TCG: its monitor has a command to inject them.
 *
 * The environment variable HUGETLB_MFR_MONITOR names a device that leads there:
 *
 *   qemu-system-x86_64 -accel tcg -cpu Skylake-Server -smp 4 ...
 *	-chardev socket,id=monitor,path=SOCKET,server=on,wait=off
 *	-mon chardev=monitor,mode=readline
 *	-chardev socket,id=line,path=SOCKET -device virtio-serial-pci
 *	-device virtserialport,chardev=line
 *
 * (A serial port will do, but not for two machine checks at once: what stops the
 * machine must be there in one piece.)
 *
 * A machine check must not hit the kernel: that would panic, rightly. So the
 * victim has a CPU for itself, reads the page all the time, and is not shot at
 * before that CPU has gone without an interrupt for longer than ticks are apart:
 *
 *   nohz_full=2-3 isolcpus=domain,managed_irq,2-3 irqaffinity=0-1 tsc=reliable
 *   mce=ignore_ce
 *
 * After the first machine check the kernel refuses to unpoison pages until it is
 * booted again.
 */
#ifndef _SELFTESTS_MM_MACHINE_CHECK_H
#define _SELFTESTS_MM_MACHINE_CHECK_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

/* RIPV, EIPV, MCIP: broadcast to all CPUs, as old ones do */
#define MCG_STATUS_BROADCAST	0x7ULL
/* The same and LMCES: only this CPU gets it */
#define MCG_STATUS_LOCAL	0xfULL
/* The same without EIPV: what the CPU is doing has nothing to do with it */
#define MCG_STATUS_BACKGROUND	0xdULL
/* ADDR is a physical address, and good for 4 KiB */
#define MCI_MISC_PHYSICAL_4K	0x8cULL
/* The same for 1 << @lsb bytes */
#define MCI_MISC_PHYSICAL(lsb)	(0x80ULL | (lsb))
#define MCI_STATUS_MISC_VALID	0x800000000000000ULL
/* VAL, UC, EN, MISCV, ADDRV, S, AR: a data load or a fetch has consumed it */
#define MCI_STATUS_DATA_LOAD	0xbd80000000000134ULL
#define MCI_STATUS_FETCH	0xbd80000000000150ULL
/* The data was marked as poisoned, as AMD says it */
#define MCI_STATUS_AMD_POISON	0x80000000000ULL
/* VAL, UC, EN, MISCV, ADDRV, S: the memory controller's patrol has found it */
#define MCI_STATUS_SCRUB	0xbd000000000000c0ULL

/* How a page is consumed, and which CPUs get a machine check */
enum mce_kind {
	MCE_LOAD,
	MCE_FETCH,
	MCE_BROADCAST,		/* as MCE_LOAD, but broadcast to all CPUs */
};

/* A thread that consumes the lost page @pfn at @addr on @cpu. */
struct mce_victim {
	char *addr;
	unsigned long pfn;
	unsigned int offset;		/* of the damage in the page, */
	unsigned long long misc;	/* and how much; 0: the whole page */
	int cpu;
	int error;
	atomic_bool ready;		/* it has begun to */
	atomic_bool over;
};

#define MCE_QUIET_US		12000
#define MCE_TRIES		2000

static __thread sigjmp_buf mce_after_signal;
static __thread atomic_bool mce_reading;

/* For the handler of SIGBUS: let a victim go on behind what it was reading. */
static inline void mce_release_victim(void)
{
	if (mce_reading)
		siglongjmp(mce_after_signal, 1);
}

/* Nobody listens to what the monitor says, but it must not get stuck. */
static inline void mce_hear_monitor(int monitor)
{
	struct pollfd p = { .fd = monitor, .events = POLLIN };
	char said[256];

	while (poll(&p, 1, 0) == 1 && (p.revents & POLLIN) &&
	       read(monitor, said, sizeof(said)) > 0)
		;
}

/* The line to the monitor, or -1. */
static inline int mce_open_monitor(void)
{
	const char *path = getenv("HUGETLB_MFR_MONITOR");
	struct termios line;
	int fd;

	if (!path)
		return -1;
	fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return fd;
	/* A tty has echoed what the monitor said so far, into its ear. */
	if (!tcgetattr(fd, &line)) {
		cfmakeraw(&line);
		tcsetattr(fd, TCSANOW, &line);
		usleep(100000);
	}
	/* O_NONBLOCK was for open() only, which could wait for carrier detect. */
	fcntl(fd, F_SETFL, O_RDWR);
	mce_hear_monitor(fd);
	dprintf(fd, "\n");
	return fd;
}

/* The first and the last CPU without ticks. */
static inline bool mce_cpus(int cpu[2])
{
	FILE *f = fopen("/sys/devices/system/cpu/nohz_full", "r");
	int n;

	if (!f)
		return false;
	n = fscanf(f, "%d-%d", &cpu[0], &cpu[1]);
	fclose(f);
	if (n == 1)
		cpu[1] = cpu[0];
	return n > 0;
}

static inline bool mce_on_amd(void)
{
	FILE *f = fopen("/proc/cpuinfo", "r");
	bool amd = false;
	char line[256];

	while (f && !amd && fgets(line, sizeof(line), f))
		amd = strstr(line, "AuthenticAMD");
	if (f)
		fclose(f);
	return amd;
}

/* The memory controller finds damage that nobody has consumed. */
static inline void mce_scrub_as(int monitor, unsigned long long status,
				unsigned long long addr, unsigned long long misc)
{
	mce_hear_monitor(monitor);
	dprintf(monitor, "mce 0 9 %#llx %#llx %#llx %#llx\n", status,
		MCG_STATUS_BACKGROUND, addr, misc);
}

static inline void mce_scrub(int monitor, unsigned long pfn)
{
	mce_scrub_as(monitor, MCI_STATUS_SCRUB, (unsigned long long)pfn * getpagesize(),
		     MCI_MISC_PHYSICAL_4K);
}

/* How many interrupts @cpu has had. */
static inline unsigned long mce_interrupts(int cpu)
{
	unsigned long sum = 0, n = 0;
	char line[1024], *p;
	FILE *f;
	int i;

	f = fopen("/proc/interrupts", "r");
	while (f && fgets(line, sizeof(line), f)) {
		p = strchr(line, ':');
		for (i = 0; p && i <= cpu; i++) {
			n = strtoul(p + 1, &p, 10);
			p--;
		}
		if (p)
			sum += n;
	}
	if (f)
		fclose(f);
	return sum;
}

/* Shoot at victims that other threads have made of themselves, at all at once. */
static inline void mce_shoot(int monitor, enum mce_kind kind,
			     struct mce_victim *victim, int nr)
{
	unsigned long long status = MCI_STATUS_DATA_LOAD;
	unsigned long last = -1UL, now;
	bool ready = false, over = false;
	char command[256];
	int i, try, len = 0;

	/* Otherwise the first interrupts the second before its shot. */
	if (nr > 1)
		len += sprintf(command, "stop\n");
	if (kind == MCE_FETCH)
		status = MCI_STATUS_FETCH;
	if (mce_on_amd())
		status |= MCI_STATUS_AMD_POISON;
	for (i = 0; i < nr; i++)
		len += snprintf(command + len, sizeof(command) - len,
				"mce %s%d 9 %#llx %#llx %#llx %#llx\n",
				kind == MCE_BROADCAST ? "-b " : "", victim[i].cpu, status,
				kind == MCE_BROADCAST ? MCG_STATUS_BROADCAST : MCG_STATUS_LOCAL,
				(unsigned long long)victim[i].pfn * getpagesize() +
				victim[i].offset,
				victim[i].misc ?: MCI_MISC_PHYSICAL_4K);

	if (nr > 1)
		len += snprintf(command + len, sizeof(command) - len, "cont\n");

	for (try = 0; try < MCE_TRIES && !over; try++) {
		now = 0;
		ready = true;
		for (i = 0; i < nr; i++) {
			now += mce_interrupts(victim[i].cpu);
			ready &= victim[i].ready;
			over |= victim[i].over;
		}
		if (ready && now == last)
			break;
		last = now;
		usleep(MCE_QUIET_US);
	}
	if (!over && try < MCE_TRIES) {
		mce_hear_monitor(monitor);
		if (write(monitor, command, len) != len)
			perror("monitor");
		for (try = 0; try < 5000 && !over; try++) {
			over = true;
			for (i = 0; i < nr; i++)
				over &= victim[i].over;
			usleep(1000);
		}
	}
	for (i = 0; i < nr; i++)
		victim[i].over = true;
}

typedef void mce_spin_t(atomic_bool *ready, atomic_bool *over);

/*
 * Be a victim, until the handler of SIGBUS calls mce_release_victim().  An error
 * of -EFAULT says that @addr could not be used at all, -ETIMEDOUT that no signal
 * came.
 */
static inline void mce_suffer(enum mce_kind kind, struct mce_victim *victim)
{
	/* 1: movb $1,(%rdi); cmpb $0,(%rsi); je 1b; ret */
	static const char spin[] = "\xc6\x07\x01\x80\x3e\x00\x74\xf8\xc3";
	cpu_set_t before, one;

	sched_getaffinity(0, sizeof(before), &before);
	CPU_ZERO(&one);
	CPU_SET(victim->cpu, &one);
	if (sched_setaffinity(0, sizeof(one), &one)) {
		victim->error = -errno;
		victim->over = true;
		return;
	}

	victim->error = 0;
	if (!sigsetjmp(mce_after_signal, 1)) {
		mce_reading = true;
		if (kind == MCE_FETCH) {
			memcpy(victim->addr, spin, sizeof(spin));
			((mce_spin_t *)victim->addr)(&victim->ready, &victim->over);
		} else {
			do {
				asm volatile("" : : "r" (__atomic_load_n(victim->addr,
									 __ATOMIC_RELAXED)));
				victim->ready = true;
			} while (!victim->over);
		}
		victim->error = -ETIMEDOUT;
	}
	mce_reading = false;
	if (!victim->ready)
		victim->error = -EFAULT;
	victim->over = true;
	sched_setaffinity(0, sizeof(before), &before);
}

struct mce_shot {
	int monitor;
	enum mce_kind kind;
	struct mce_victim *victim;
};

static inline void *mce_shoot_one(void *arg)
{
	struct mce_shot *shot = arg;

	mce_shoot(shot->monitor, shot->kind, shot->victim, 1);
	return NULL;
}

/* The caller is the victim. Returns 0, or the victim's error. */
static inline int mce_consume_as(int monitor, enum mce_kind kind,
				 struct mce_victim *victim)
{
	struct mce_shot shot = { monitor, kind, victim };
	pthread_t thread;
	int ret;

	ret = pthread_create(&thread, NULL, mce_shoot_one, &shot);
	if (ret)
		return -ret;
	mce_suffer(kind, victim);
	pthread_join(thread, NULL);
	return victim->error;
}

/* The caller consumes a lost page. */
static inline int mce_consume(int monitor, enum mce_kind kind, char *addr,
			      unsigned long pfn, int cpu)
{
	struct mce_victim victim = { .addr = addr, .pfn = pfn, .cpu = cpu };

	return mce_consume_as(monitor, kind, &victim);
}

#endif /* _SELFTESTS_MM_MACHINE_CHECK_H */
