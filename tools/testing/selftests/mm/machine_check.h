/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Machine checks that are real to the kernel, for programs that run in a virtual
 * machine of QEMU's TCG: its monitor has a command to inject them.
 *
 * The environment variable HUGETLB_MFR_MONITOR names a tty that leads there:
 *
 *   qemu-system-x86_64 -accel tcg -cpu Skylake-Server -smp 4 ...
 *	-chardev socket,id=monitor,path=SOCKET,server=on,wait=off
 *	-mon chardev=monitor,mode=readline
 *	-chardev socket,id=line,path=SOCKET -serial chardev:line
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

/* RIPV, EIPV, MCIP, and LMCES: only this CPU is told */
#define MCG_STATUS_LOCAL	0xfULL
/* The same without EIPV: what the CPU is doing has nothing to do with it */
#define MCG_STATUS_BACKGROUND	0xdULL
/* ADDR is a physical address, and good for 4 KiB */
#define MCI_MISC_PHYSICAL_4K	0x8cULL
/* VAL, UC, EN, MISCV, ADDRV, S, AR: a data load has consumed it */
#define MCI_STATUS_DATA_LOAD	0xbd80000000000134ULL
/* The same, and that the data was marked as poisoned, as AMD says it */
#define MCI_STATUS_AMD_POISON	(MCI_STATUS_DATA_LOAD | 1ULL << 43)

/* VAL, UC, EN, ADDRV, S: the memory controller's patrol has found it */
#define MCI_STATUS_SCRUB	0xbd000000000000c0ULL

struct mce_shot {
	int monitor;
	int cpu;
	unsigned long pfn;
	atomic_bool ready;		/* the victim is reading */
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

/* The line to the monitor, or -1. */
static inline int mce_open_monitor(void)
{
	const char *path = getenv("HUGETLB_MFR_MONITOR");
	struct termios line;
	int fd;

	if (!path)
		return -1;
	fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || tcgetattr(fd, &line))
		return fd;
	cfmakeraw(&line);
	tcsetattr(fd, TCSANOW, &line);
	/* Commands wait for each other, only this must not wait for a carrier. */
	fcntl(fd, F_SETFL, O_RDWR);
	/* So far the line has echoed what the monitor said, into its ear. */
	usleep(100000);
	tcflush(fd, TCIFLUSH);
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

static inline void mce_raise(int monitor, int cpu, unsigned long long status,
			     unsigned long long mcg_status, unsigned long pfn)
{
	tcflush(monitor, TCIFLUSH);
	dprintf(monitor, "mce %d 9 %#llx %#llx %#llx %#llx\n", cpu, status, mcg_status,
		(unsigned long long)pfn * getpagesize(), MCI_MISC_PHYSICAL_4K);
}

/* The memory controller finds a lost page that nobody has consumed. */
static inline void mce_scrub(int monitor, unsigned long pfn)
{
	mce_raise(monitor, 0, MCI_STATUS_SCRUB, MCG_STATUS_BACKGROUND, pfn);
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

static inline void *mce_shoot(void *arg)
{
	struct mce_shot *shot = arg;
	unsigned long last = -1UL, now;
	int i;

	for (i = 0; i < MCE_TRIES; i++) {
		now = mce_interrupts(shot->cpu);
		if (shot->over || (shot->ready && now == last))
			break;
		last = now;
		usleep(MCE_QUIET_US);
	}
	if (shot->over || i == MCE_TRIES) {
		shot->over = true;
		return NULL;
	}

	mce_raise(shot->monitor, shot->cpu,
		  mce_on_amd() ? MCI_STATUS_AMD_POISON : MCI_STATUS_DATA_LOAD,
		  MCG_STATUS_LOCAL, shot->pfn);

	for (i = 0; i < 5000 && !shot->over; i++)
		usleep(1000);
	shot->over = true;
	return NULL;
}

/*
 * Consume a lost page: the caller reads @addr, in page @pfn, on @cpu, until its
 * handler of SIGBUS calls mce_release_victim(). Returns 0, or an error: -EFAULT
 * if @addr could not be read at all, -ETIMEDOUT if no signal came.
 */
static inline int mce_consume(int monitor, const char *addr, unsigned long pfn,
			      int cpu)
{
	struct mce_shot shot = {
		.monitor = monitor,
		.cpu = cpu,
		.pfn = pfn,
	};
	cpu_set_t before, one;
	int ret;
	pthread_t thread;

	if (sched_getaffinity(0, sizeof(before), &before))
		return -errno;
	ret = -pthread_create(&thread, NULL, mce_shoot, &shot);
	if (ret)
		return ret;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof(one), &one);
	if (!sigsetjmp(mce_after_signal, 1)) {
		mce_reading = true;
		do {
			asm volatile("" : : "r" (__atomic_load_n(addr, __ATOMIC_RELAXED)));
			shot.ready = true;
		} while (!shot.over);
		ret = -ETIMEDOUT;
	}
	mce_reading = false;
	if (!shot.ready)
		ret = -EFAULT;
	shot.over = true;

	sched_setaffinity(0, sizeof(before), &before);
	pthread_join(thread, NULL);
	return ret;
}

#endif /* _SELFTESTS_MM_MACHINE_CHECK_H */
