// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
// Stands in for Firecracker when it restores a guest with a page-fault handler: two regions of private anonymous memory, registered
// for missing pages with a userfaultfd that tells of removals, and a JSON array with that descriptor over a unix socket.
//
// stand-in SOCKET IMAGE LOW HIGH WHAT
//   IMAGE has what the memory must read as: LOW bytes of the first region, then HIGH bytes of the second.
//   WHAT: whole       reads all pages in two threads, discards some, reads them again as zeros
//         dies        reads one page and kills itself
//         silent      connects and says nothing until it is killed
//         no-uffd, no-fd, outside, overlap, no-json: lies, and waits for the end of the connection
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { PAGE = 4096 };

static unsigned char *expected, *low, *high;
static size_t low_bytes, high_bytes;

static void need(int good, const char *what) {
  if (!good) {
    perror(what);
    exit(2);
  }
}

static unsigned char *page(size_t at) {
  return at < low_bytes ? low + at : high + (at - low_bytes);
}

// Compares every second page from the first on, in an order that jumps.
static void *compare(void *first) {
  size_t pages = (low_bytes + high_bytes) / PAGE;
  for (size_t i = (size_t)first; i < pages; i += 2) {
    size_t at = (i * 37 % pages) * PAGE;
    if (memcmp(page(at), expected + at, PAGE)) {
      printf("wrong page %zu\n", at / PAGE);
      exit(1);
    }
  }
  return NULL;
}

static void wait_for_end(int connection) {
  char byte;
  while (read(connection, &byte, 1) > 0) {
  }
}

int main(int count, char **arguments) {
  need(count == 6, "five arguments");
  const char *what = arguments[5];
  low_bytes = strtoull(arguments[3], NULL, 10);
  high_bytes = strtoull(arguments[4], NULL, 10);
  int image = open(arguments[2], O_RDONLY);
  need(image >= 0, "image");
  expected = mmap(NULL, low_bytes + high_bytes, PROT_READ, MAP_PRIVATE, image, 0);
  need(expected != MAP_FAILED, "map the image");

  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, arguments[1], sizeof address.sun_path - 1);
  int connection = socket(AF_UNIX, SOCK_STREAM, 0);
  // The server may have made the socket's file only just now.
  int connected = -1;
  for (int tries = 0; tries < 1000 && connected; tries++) {
    connected = connect(connection, (void *)&address, sizeof address);
    if (connected) {
      need(errno == ECONNREFUSED, "connect");
      usleep(10000);
    }
  }
  need(!connected, "connect");
  if (!strcmp(what, "silent")) {
    pause();
  }

  int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (uffd < 0) {
    printf("no userfaultfd\n");
    return 77;
  }
  struct uffdio_api api = {.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE};
  need(!ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
  unsigned char **regions[] = {&low, &high};
  size_t sizes[] = {low_bytes, high_bytes};
  for (int i = 0; i < 2; i++) {
    void *at = mmap(NULL, sizes[i], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    need(at != MAP_FAILED, "memory");
    *regions[i] = at;
    struct uffdio_register all = {.range = {(uintptr_t)at, sizes[i]}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    need(!ioctl(uffd, UFFDIO_REGISTER, &all), "UFFDIO_REGISTER");
  }

  size_t high_offset = low_bytes + (strcmp(what, "outside") ? 0 : PAGE) - (strcmp(what, "overlap") ? 0 : PAGE);
  char json[1000];
  int length = snprintf(json, sizeof json,
      "[{\"base_host_virt_addr\":%ju,\"size\":%zu,\"offset\":0,\"page_size\":4096,\"page_size_kib\":4096},"
      "{\"base_host_virt_addr\":%ju,\"size\":%zu,\"offset\":%zu,\"page_size\":4096,\"page_size_kib\":4096}]",
      (uintmax_t)(uintptr_t)low, low_bytes, (uintmax_t)(uintptr_t)high, high_bytes, high_offset);
  if (!strcmp(what, "no-json")) {
    json[1] = '?';
  }
  int passed = strcmp(what, "no-uffd") ? uffd : image;
  char room[CMSG_SPACE(sizeof passed)] = {0};
  // In two parts: a read may bring either alone.
  struct iovec part = {json, 20};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  if (strcmp(what, "no-fd")) {
    message.msg_control = room;
    message.msg_controllen = sizeof room;
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    *rights = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof passed), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(rights), &passed, sizeof passed);
  }
  need(sendmsg(connection, &message, MSG_NOSIGNAL) == 20, "send");
  // A liar may have been found out by the first part.
  if (send(connection, json + 20, length - 20, MSG_NOSIGNAL) < 0) {
    return 0;
  }

  if (!strcmp(what, "dies")) {
    need(!memcmp(low, expected, PAGE), "the first page");
    kill(getpid(), SIGKILL);
  }
  if (strcmp(what, "whole")) {
    wait_for_end(connection);
    return 0;
  }
  pthread_t other;
  need(!pthread_create(&other, NULL, compare, (void *)1), "thread");
  compare((void *)0);
  pthread_join(other, NULL);
  // A balloon gives memory back: it reads as zeros from then on.
  size_t gone = low_bytes / 4;
  need(!madvise(low, gone, MADV_DONTNEED), "madvise");
  for (size_t at = 0; at < gone; at++) {
    if (low[at]) {
      printf("page %zu came back\n", at / PAGE);
      return 1;
    }
  }
  printf("%zu pages are right\n", (low_bytes + high_bytes) / PAGE);
  return 0;
}
