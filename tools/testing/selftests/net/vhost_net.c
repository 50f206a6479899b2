// SPDX-License-Identifier: GPL-2.0
/*
 * A guest's driver may queue a buffer that vhost-net can't make into a packet. Such
 * a buffer must come back like one that was sent, the buffers around it must be
 * sent, and the worker must spend no time on it afterwards.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/vhost.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>
#include <net/if.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include "kselftest_harness.h"

#define TX_QUEUE	1
#define NR_DESC		8
/* Nobody else sends these. */
#define PROTOCOL	ETH_P_802_EX1
#define WAIT_MS		2000

/* A buffer of the guest, with the header that is used without features. */
struct packet {
	struct virtio_net_hdr hdr;
	struct ethhdr eth;
	char payload[64];
};

struct guest {
	int tap;
	int vhost;
	int kick;
	int call;
	int peer;
	/* A page for the ring, one for packets, and one that can't be read. */
	char *mem;
	size_t page;
	struct vring ring;
};

struct fault {
	bool unreadable;
	size_t len;
	struct virtio_net_hdr hdr;
};

FIXTURE(bad_buffer)
{
	struct guest guest;
};

FIXTURE_VARIANT(bad_buffer)
{
	struct fault fault;
};

FIXTURE_VARIANT_ADD(bad_buffer, unreadable)
{
	.fault = { .unreadable = true, .len = sizeof(struct packet) },
};

FIXTURE_VARIANT_ADD(bad_buffer, too_short)
{
	.fault = { .len = 1 },
};

FIXTURE_VARIANT_ADD(bad_buffer, with_a_checksum_beyond_its_end)
{
	.fault = {
		.len = sizeof(struct packet),
		.hdr = {
			.flags = VIRTIO_NET_HDR_F_NEEDS_CSUM,
			.csum_start = sizeof(struct packet),
		},
	},
};

FIXTURE_SETUP(bad_buffer)
{
	struct guest *guest = &self->guest;
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	struct sockaddr_ll addr = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(PROTOCOL),
	};
	struct vhost_vring_state num = { .index = TX_QUEUE, .num = NR_DESC };
	struct vhost_vring_state base = { .index = TX_QUEUE };
	struct vhost_vring_addr vring = { .index = TX_QUEUE };
	struct vhost_vring_file file = { .index = TX_QUEUE };
	struct vhost_memory *table;
	uint64_t features = 0;

	guest->tap = open("/dev/net/tun", O_RDWR);
	guest->vhost = open("/dev/vhost-net", O_RDWR);
	if (guest->tap < 0 || guest->vhost < 0)
		SKIP(return, "needs CONFIG_TUN, CONFIG_VHOST_NET, and to be root");

	/* The other side of the tap, which is where packets arrive. */
	ASSERT_EQ(0, ioctl(guest->tap, TUNSETIFF, &ifr));
	guest->peer = socket(AF_PACKET, SOCK_RAW, 0);
	ASSERT_LE(0, guest->peer);
	addr.sll_ifindex = if_nametoindex(ifr.ifr_name);
	ifr.ifr_flags = IFF_UP;
	ASSERT_EQ(0, ioctl(guest->peer, SIOCSIFFLAGS, &ifr));
	ASSERT_EQ(0, bind(guest->peer, (struct sockaddr *)&addr, sizeof(addr)));

	guest->page = sysconf(_SC_PAGESIZE);
	guest->mem = mmap(NULL, 3 * guest->page, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, guest->mem);
	ASSERT_EQ(0, mprotect(guest->mem + 2 * guest->page, guest->page, PROT_NONE));
	vring_init(&guest->ring, NR_DESC, guest->mem, 64);

	ASSERT_EQ(0, ioctl(guest->vhost, VHOST_SET_OWNER));
	ASSERT_EQ(0, ioctl(guest->vhost, VHOST_SET_FEATURES, &features));
	table = calloc(1, sizeof(*table) + sizeof(table->regions[0]));
	ASSERT_NE(NULL, table);
	table->nregions = 1;
	table->regions[0].memory_size = 3 * guest->page;
	table->regions[0].userspace_addr = (uintptr_t)guest->mem;
	ASSERT_EQ(0, ioctl(guest->vhost, VHOST_SET_MEM_TABLE, table));
	free(table);

	ASSERT_EQ(0, ioctl(guest->vhost, VHOST_SET_VRING_NUM, &num));
	ASSERT_EQ(0, ioctl(guest->vhost, VHOST_SET_VRING_BASE, &base));
	vring.desc_user_addr = (uintptr_t)guest->ring.desc;
	vring.avail_user_addr = (uintptr_t)guest->ring.avail;
	vring.used_user_addr = (uintptr_t)guest->ring.used;
	ASSERT_EQ(0, ioctl(guest->vhost, VHOST_SET_VRING_ADDR, &vring));
	guest->kick = eventfd(0, 0);
	file.fd = guest->kick;
	ASSERT_EQ(0, ioctl(guest->vhost, VHOST_SET_VRING_KICK, &file));
	guest->call = eventfd(0, 0);
	file.fd = guest->call;
	ASSERT_EQ(0, ioctl(guest->vhost, VHOST_SET_VRING_CALL, &file));
	file.fd = guest->tap;
	ASSERT_EQ(0, ioctl(guest->vhost, VHOST_NET_SET_BACKEND, &file));
}

FIXTURE_TEARDOWN(bad_buffer)
{
	struct guest *guest = &self->guest;

	close(guest->vhost);
	close(guest->tap);
	close(guest->peer);
	close(guest->kick);
	close(guest->call);
	munmap(guest->mem, 3 * guest->page);
}

/* Have the next descriptor name @len bytes at @offset in the memory. */
static void queue(struct guest *guest, size_t offset, size_t len)
{
	struct vring_avail *avail = guest->ring.avail;
	unsigned int nr = avail->idx % NR_DESC;

	guest->ring.desc[nr] = (struct vring_desc){ .addr = offset, .len = len };
	avail->ring[nr] = nr;
	__atomic_store_n(&avail->idx, avail->idx + 1, __ATOMIC_RELEASE);
}

static void queue_packet(struct guest *guest, const struct packet *packet,
			 size_t len)
{
	size_t offset = guest->page + guest->ring.avail->idx * sizeof(*packet);

	memcpy(guest->mem + offset, packet, sizeof(*packet));
	queue(guest, offset, len);
}

static void queue_good(struct guest *guest, const char *payload)
{
	struct packet packet = { .eth.h_proto = htons(PROTOCOL) };

	memset(packet.eth.h_dest, 0xff, ETH_ALEN);
	snprintf(packet.payload, sizeof(packet.payload), "%s", payload);
	queue_packet(guest, &packet, sizeof(packet));
}

static void queue_bad(struct guest *guest, const struct fault *fault)
{
	struct packet packet = { .hdr = fault->hdr };

	if (fault->unreadable)
		queue(guest, 2 * guest->page, fault->len);
	else
		queue_packet(guest, &packet, fault->len);
}

static unsigned int nr_used(struct guest *guest)
{
	return __atomic_load_n(&guest->ring.used->idx, __ATOMIC_ACQUIRE);
}

/* Kick, and wait until @nr buffers have come back, or nothing happens for WAIT_MS. */
static bool send_until_used(struct guest *guest, unsigned int nr)
{
	struct pollfd pfd = { .fd = guest->call, .events = POLLIN };
	eventfd_t value;

	eventfd_write(guest->kick, 1);
	while (nr_used(guest) < nr && poll(&pfd, 1, WAIT_MS) == 1)
		eventfd_read(guest->call, &value);
	return nr_used(guest) >= nr;
}

/* Return true if the next packet has the given payload. */
static bool arrives(struct guest *guest, const char *payload)
{
	struct pollfd pfd = { .fd = guest->peer, .events = POLLIN };
	struct packet packet;
	size_t len = sizeof(packet) - sizeof(packet.hdr);

	return poll(&pfd, 1, WAIT_MS) == 1 &&
	       recv(guest->peer, &packet.eth, len, 0) == (ssize_t)len &&
	       !strcmp(packet.payload, payload);
}

/* The worker is a thread of this process. */
static long cpu_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

TEST_F(bad_buffer, comes_back_unsent)
{
	queue_bad(&self->guest, &variant->fault);
	ASSERT_TRUE(send_until_used(&self->guest, 1));
	EXPECT_EQ(1u, nr_used(&self->guest));
	EXPECT_EQ(0u, self->guest.ring.used->ring[0].id);
	EXPECT_EQ(0u, self->guest.ring.used->ring[0].len);
}

TEST_F(bad_buffer, does_not_stop_other_packets)
{
	queue_good(&self->guest, "before");
	queue_bad(&self->guest, &variant->fault);
	queue_good(&self->guest, "after");
	send_until_used(&self->guest, 3);
	EXPECT_TRUE(arrives(&self->guest, "before"));
	EXPECT_TRUE(arrives(&self->guest, "after"));
}

TEST_F(bad_buffer, leaves_the_worker_asleep)
{
	const long period_ms = 500;
	long before;

	queue_bad(&self->guest, &variant->fault);
	send_until_used(&self->guest, 1);
	before = cpu_ms();
	usleep(period_ms * 1000);
	EXPECT_GT(period_ms / 10, cpu_ms() - before);
}

TEST_HARNESS_MAIN
