// SPDX-License-Identifier: GPL-2.0
/*
 * Print the frequency of this machine's time stamp counter in kHz. QEMU's TCG shows
 * it to its guests as it is. The frequency that they measure is wrong by a factor
 * when this machine is busy, and so is their clock then.
 */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

/* A clock reading and the counter at that moment, to a few microseconds. */
static double now(unsigned long long *counter)
{
	unsigned long long before, after;
	struct timespec ts;

	do {
		before = __rdtsc();
		clock_gettime(CLOCK_MONOTONIC, &ts);
		after = __rdtsc();
	} while (after - before > 20000);
	*counter = before + (after - before) / 2;
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

int main(void)
{
	const struct timespec tenth = { .tv_nsec = 100000000 };
	unsigned long long c0, c1;
	double t0, t1;

	t0 = now(&c0);
	nanosleep(&tenth, NULL);
	t1 = now(&c1);
	printf("%.0f\n", (c1 - c0) / (t1 - t0) / 1000);
	return 0;
}
