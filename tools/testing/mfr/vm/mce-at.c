// SPDX-License-Identifier: GPL-2.0
/*
 * mce-at GDB LINE: machine checks at exact instructions of a virtual machine's kernel, and
 * CPUs that are held there.
 *
 * GDB is the socket of QEMU's gdb stub, LINE that of a serial port of the machine.  A
 * program in the machine writes lines there, and reads one line for each:
 *
 *   at IP VA LEN PA	From now on memory is bad: LEN bytes at the virtual address VA,
 *			the physical address PA.  A CPU that is about to execute the
 *			instruction at IP, which reads there, gets a machine check
 *			instead.  "ok", or "error".
 *   then IP VA LEN PA	The same, but not before the first machine check: so memory can
 *			go bad between two accesses to it.
 *   clear		All memory is good again, and no CPU is held.  Tells how many
 *			machine checks there were since the last "clear".
 *   hold FROM LEN TO [1]	The first CPU that is about to call the function at TO, in the LEN
 *			bytes of code at FROM, is held there while the others go on, for
 *			HOLD_S seconds at most.  With a 1, the one that calls it first
 *			passes, and the first one at another place is held.  "ok", or
 *			"error" if nothing calls it.
 *   watch VA		The same with the first CPU that has read the 8 bytes at VA.
 *   held		"ok" if a CPU is held now, else "error".
 *   release		The same, and then it goes on, and no other will be held.
 *
 * Numbers are hexadecimal, the answer to "clear" is decimal.
 *
 * A breakpoint stops the whole machine before the instruction, and QEMU's monitor, which
 * the stub leads to, injects the machine check: so it can't come too late, or to another
 * instruction.  A stop that nothing comes of is harmless, whatever its reason: the CPU
 * meets the breakpoint again when it goes on.
 */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* VAL, UC, EN, MISCV, ADDRV, S, AR: a data load has consumed it */
#define STATUS_LOAD		0xbd80000000000134ULL
/* RIPV, EIPV, MCIP, LMCES: only this CPU is told */
#define MCG_LOCAL		0xfULL
/* ADDR is a physical address, and good for 4 KiB */
#define MISC_PHYSICAL_4K	0x8cULL

/* In the stub's order */
#define REG_SI		4
#define REG_IP		16
#define MAX_BAD		64
#define MAX_CALLS	16
#define MAX_CODE	(16 << 10)
/* Not long enough for the kernel to complain, as boot.sh starts it. */
#define HOLD_S		90

static struct bad {
	unsigned long long ip, va, len, pa;
	bool later;
} bad[MAX_BAD];
static unsigned int nr_bad;
static unsigned long nr_injected;
static unsigned long long regs[REG_IP + 1];
static struct {
	unsigned long long ip[MAX_CALLS];
	unsigned int nr;	/* calls that hold whatever comes to them, */
	bool other;		/* but for those at the place where the first was, */
	unsigned long long first;
	unsigned long long va;	/* and memory that holds whatever reads it, or 0 */
	unsigned int thread;	/* the CPU that is held, or 0 */
	time_t until;
} hold;
static unsigned int nr_threads;
static int gdb, line;

static int connect_to(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int i, fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	/* QEMU may not have made it yet. */
	for (i = 0; i < 200; i++) {
		if (!connect(fd, (struct sockaddr *)&addr, sizeof(addr)))
			return fd;
		usleep(50000);
	}
	perror(path);
	exit(1);
}

static struct {
	char buf[4096];
	ssize_t len, at;
} said;

static const char *told;	/* what the monitor is doing, or NULL */

/* The end of the machine is ours. */
static void end(void)
{
	if (told)
		fprintf(stderr, "mce-at: the machine has ended during '%s'\n", told);
	exit(0);
}

static char get_char(void)
{
	if (said.at == said.len) {
		said.at = 0;
		said.len = read(gdb, said.buf, sizeof(said.buf));
		if (said.len <= 0)
			end();
	}
	return said.buf[said.at++];
}

static void send_all(int fd, const char *text, size_t len)
{
	if (write(fd, text, len) != (ssize_t)len)
		end();
}

static void send_packet(const char *text)
{
	unsigned char sum = 0;
	char packet[1024];
	const char *p;

	for (p = text; *p; p++)
		sum += *p;
	send_all(gdb, packet, snprintf(packet, sizeof(packet), "$%s#%02x", text, sum));
	while (get_char() != '+')
		;
}

static const char *receive_packet(void)
{
	static char text[8192];
	size_t len = 0;
	char c;

	while (get_char() != '$')
		;
	while ((c = get_char()) != '#')
		if (len < sizeof(text) - 1)
			text[len++] = c;
	text[len] = '\0';
	get_char();
	get_char();
	/* To a running machine, anything beyond that means to stop. */
	send_all(gdb, "+", 1);
	return text;
}

static const char *ask(const char *text)
{
	send_packet(text);
	return receive_packet();
}

static void hold_thread(unsigned int thread)
{
	hold.thread = thread;
	hold.until = time(NULL) + HOLD_S;
}

/* Has the machine stopped?  Then *@thread is the one that knows why. */
static bool has_stopped(const char *packet, unsigned int *thread)
{
	const char *p = strstr(packet, "thread:");

	if (*packet != 'T' || !p || sscanf(p + 7, "%x", thread) != 1)
		return false;
	/* It has read that already, and won't meet it again. */
	if (strstr(packet, "watch:"))
		hold_thread(*thread);
	return true;
}

static unsigned int wait_for_stop(void)
{
	unsigned int thread;

	while (!has_stopped(receive_packet(), &thread))
		;
	return thread;
}

static void tell_monitor(const char *command)
{
	char text[512] = "qRcmd,";
	unsigned int byte;
	const char *p;

	told = command;
	for (p = command; *p; p++)
		sprintf(text + strlen(text), "%02x", *p);
	/* The monitor's words come first. It has some for what ends the machine. */
	for (p = ask(text); *p == 'O' && strcmp(p, "OK"); p = receive_packet())
		while (sscanf(++p, "%2x", &byte) == 1) {
			fputc(byte, stderr);
			p++;
		}
	if (strcmp(p, "OK"))
		fprintf(stderr, "mce-at: %s: %s\n", command, p);
	told = NULL;
}

/* The registers of the stopped CPU, each as bytes in hexadecimal */
static void get_regs(void)
{
	const char *packet = ask("g");
	unsigned int i, byte;
	int shift;

	for (i = 0; i <= REG_IP; i++) {
		regs[i] = 0;
		for (shift = 0; shift < 64; shift += 8, packet += 2)
			if (sscanf(packet, "%2x", &byte) == 1)
				regs[i] |= (unsigned long long)byte << shift;
	}
}

static void break_at(unsigned long long ip, bool on)
{
	char text[64];

	snprintf(text, sizeof(text), "%c0,%llx,1", on ? 'Z' : 'z', ip);
	if (strcmp(ask(text), "OK"))
		fprintf(stderr, "mce-at: no breakpoint at %llx\n", ip);
}

static void watch(unsigned long long va, bool on)
{
	char text[64];

	snprintf(text, sizeof(text), "%c3,%llx,8", on ? 'Z' : 'z', va);
	if (strcmp(ask(text), "OK"))
		fprintf(stderr, "mce-at: no watchpoint at %llx\n", va);
}

static bool is_armed(unsigned long long ip)
{
	unsigned int i;

	for (i = 0; i < nr_bad && bad[i].ip != ip; i++)
		;
	return i < nr_bad;
}

static bool read_memory(unsigned long long va, unsigned char *buf, size_t len)
{
	const char *answer;
	unsigned int byte;
	char text[64];
	size_t i;

	snprintf(text, sizeof(text), "m%llx,%zx", va, len);
	answer = ask(text);
	for (i = 0; i < len && sscanf(answer + 2 * i, "%2x", &byte) == 1; i++)
		buf[i] = byte;
	return i == len && *answer != 'E';
}

/* Where does the instruction read memory?  0 for one that isn't known to do so. */
static unsigned long long source(void)
{
	/* By their numbers in instructions */
	static const int nr[16] = { 0, 2, 3, 1, 7, 6, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15 };
	unsigned int rex = 0, modrm, sib, mod, rm;
	unsigned char insn[16], *p = insn;
	unsigned long long addr = 0;
	int disp = 0;

	if (!read_memory(regs[REG_IP], insn, sizeof(insn) - 1))
		return 0;
	while (*p == 0x66 || *p == 0xf0 || *p == 0xf2 || *p == 0xf3)
		p++;
	if ((*p & 0xf0) == 0x40)
		rex = *p++;
	/* MOVS */
	if (*p == 0xa4 || *p == 0xa5)
		return regs[REG_SI];
	if (*p == 0x0f)
		p++;
	p++;
	modrm = *p++;
	mod = modrm >> 6;
	rm = modrm & 7;
	if (mod == 3 || (mod == 0 && rm == 5))
		return 0;
	if (rm == 4) {
		sib = *p++;
		rm = sib & 7;
		if (mod == 0 && rm == 5)
			return 0;
		if ((sib >> 3 & 7) != 4 || rex & 2)
			addr = regs[nr[(sib >> 3 & 7) | (rex & 2) << 2]] << (sib >> 6);
	}
	if (mod == 1)
		disp = (signed char)*p;
	else if (mod == 2)
		memcpy(&disp, p, sizeof(disp));
	return addr + regs[nr[rm | (rex & 1) << 3]] + disp;
}

static void count_threads(void)
{
	const char *p = ask("qfThreadInfo");

	for (; *p == 'm'; p = ask("qsThreadInfo"))
		for (nr_threads++; *p; p++)
			nr_threads += *p == ',';
}

/* Where does that code call the function at @to? */
static void find_calls(unsigned long long from, unsigned long long len,
		       unsigned long long to)
{
	static unsigned char code[MAX_CODE];
	const size_t piece = 1024;
	size_t at;
	int rel;

	if (len > MAX_CODE)
		len = MAX_CODE;
	for (at = 0; at < len; at += piece)
		if (!read_memory(from + at, code + at, at + piece < len ? piece : len - at))
			return;
	for (at = 0; at + 5 <= len && hold.nr < MAX_CALLS; at++) {
		memcpy(&rel, code + at + 1, sizeof(rel));
		/* A call, or the jump that is one at the end of a function */
		if ((code[at] == 0xe8 || code[at] == 0xe9) && from + at + 5 + rel == to)
			hold.ip[hold.nr++] = from + at;
	}
}

static void stop_holding(void)
{
	while (hold.nr)
		break_at(hold.ip[--hold.nr], false);
	if (hold.va)
		watch(hold.va, false);
	hold.va = 0;
}

static bool is_call(unsigned long long ip)
{
	unsigned int i;

	for (i = 0; i < hold.nr && hold.ip[i] != ip; i++)
		;
	return i < hold.nr;
}

static void let_go(void)
{
	stop_holding();
	hold.thread = 0;
}

/* Let all go on but the CPU that is held. */
static void go_on(void)
{
	char text[256] = "vCont";
	unsigned int i;

	if (hold.thread)
		stop_holding();
	for (i = 1; hold.thread && i <= nr_threads; i++)
		if (i != hold.thread)
			sprintf(text + strlen(text), ";c:%x", i);
	send_packet(hold.thread ? text : "c");
}

static void stop_machine(void)
{
	send_all(gdb, "\x03", 1);
	wait_for_stop();
}

/* Is the stopped CPU about to read bad memory?  Then that is at *@pa. */
static bool about_to_read(unsigned long long *pa)
{
	unsigned long long va = source();
	unsigned char byte;
	unsigned int i;

	for (i = 0; i < nr_bad; i++) {
		if (bad[i].ip != regs[REG_IP] || va - bad[i].va >= bad[i].len ||
		    (bad[i].later && !nr_injected))
			continue;
		*pa = bad[i].pa + va - bad[i].va;
		/* A page fault comes first. */
		return read_memory(va, &byte, 1);
	}
	return false;
}

static void handle_stop(unsigned int thread)
{
	unsigned long long pa;
	char text[256];

	for (;;) {
		snprintf(text, sizeof(text), "Hg%x", thread);
		ask(text);
		get_regs();
		if (is_call(regs[REG_IP])) {
			if (!hold.first)
				hold.first = regs[REG_IP];
			if (!hold.other || hold.first != regs[REG_IP]) {
				hold_thread(thread);
				break;
			}
		} else if (!is_armed(regs[REG_IP])) {
			break;
		} else if (about_to_read(&pa)) {
			snprintf(text, sizeof(text), "mce %u 9 %#llx %#llx %#llx %#llx",
				 thread - 1, STATUS_LOAD, MCG_LOCAL, pa,
				 MISC_PHYSICAL_4K);
			tell_monitor(text);
			nr_injected++;
			break;
		}
		/*
		 * All others stand still until it is behind that.  (And it may be at
		 * the same instruction again, if that is one for strings.)
		 */
		snprintf(text, sizeof(text), "vCont;s:%x", thread);
		send_packet(text);
		wait_for_stop();
	}
	go_on();
}

static void handle_command(const char *command)
{
	char answer[32] = "error\n";
	unsigned long long other = 0;
	unsigned int i;
	struct bad b;
	char verb[8];

	stop_machine();
	if (sscanf(command, "%7s %llx %llx %llx %llx", verb, &b.ip, &b.va, &b.len,
		   &b.pa) == 5 && strcmp(verb, "hold") && nr_bad < MAX_BAD) {
		b.later = !strcmp(verb, "then");
		if (!is_armed(b.ip))
			break_at(b.ip, true);
		bad[nr_bad++] = b;
		snprintf(answer, sizeof(answer), "ok\n");
	} else if (!strcmp(command, "clear")) {
		while (nr_bad) {
			nr_bad--;
			if (!is_armed(bad[nr_bad].ip))
				break_at(bad[nr_bad].ip, false);
		}
		snprintf(answer, sizeof(answer), "%lu\n", nr_injected);
		nr_injected = 0;
		let_go();
	} else if (sscanf(command, "hold %llx %llx %llx %llx", &b.ip, &b.len, &b.va,
			  &other) >= 3 && !hold.nr && !hold.thread) {
		hold.other = other;
		hold.first = 0;
		find_calls(b.ip, b.len, b.va);
		for (i = 0; i < hold.nr; i++)
			break_at(hold.ip[i], true);
		if (hold.nr)
			snprintf(answer, sizeof(answer), "ok\n");
	} else if (sscanf(command, "watch %llx", &b.va) == 1 && !hold.va && !hold.thread) {
		hold.va = b.va;
		watch(hold.va, true);
		snprintf(answer, sizeof(answer), "ok\n");
	} else if (!strcmp(command, "held") || !strcmp(command, "release")) {
		if (hold.thread)
			snprintf(answer, sizeof(answer), "ok\n");
		if (!strcmp(command, "release"))
			let_go();
	}
	go_on();
	send_all(line, answer, strlen(answer));
}

int main(int argc, char **argv)
{
	char command[256];
	size_t len = 0;

	if (argc != 3) {
		fprintf(stderr, "usage: mce-at GDB LINE\n");
		return 2;
	}
	gdb = connect_to(argv[1]);
	line = connect_to(argv[2]);
	/* The stub stops the machine for who comes to it. */
	ask("?");
	count_threads();
	go_on();

	for (;;) {
		struct pollfd fds[] = {
			{ .fd = gdb, .events = POLLIN },
			{ .fd = line, .events = POLLIN },
		};
		unsigned int thread;

		if (poll(fds, 2, said.at < said.len ? 0 : hold.thread ? 1000 : -1) < 0)
			return 1;
		if (hold.thread && time(NULL) >= hold.until) {
			stop_machine();
			let_go();
			go_on();
			continue;
		}
		if (fds[0].revents || said.at < said.len) {
			if (has_stopped(receive_packet(), &thread))
				handle_stop(thread);
		} else if (fds[1].revents) {
			if (read(line, command + len, 1) != 1)
				return 0;
			if (command[len] == '\n') {
				command[len] = '\0';
				len = 0;
				handle_command(command);
			} else if (len < sizeof(command) - 2) {
				len++;
			}
		}
	}
}
