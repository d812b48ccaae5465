/* Adds the seconds in FAKE_CLOCK_FILE (an int64, mapped, so that it may change at any moment) to the
   time of day. Monotonic clocks stay, and waits until a time of day end when it would be reached. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_at;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAKE_CLOCK_FILE");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *map = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  if (map != MAP_FAILED) offset_at = map;
  close(file);
}

static int64_t offset(void) { return offset_at ? *offset_at : 0; }
static int of_day(clockid_t id) { return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE; }

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int clock_gettime(clockid_t id, struct timespec *t) {
  REAL(clock_gettime);
  int answer = real(id, t);
  if (!answer && of_day(id)) t->tv_sec += offset();
  return answer;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
  REAL(gettimeofday);
  int answer = real(t, zone);
  if (!answer) t->tv_sec += offset();
  return answer;
}

time_t time(time_t *t) {
  REAL(time);
  time_t now = real(NULL) + offset();
  if (t) *t = now;
  return now;
}

static struct timespec true_time(const struct timespec *t) {
  struct timespec moved = *t;
  moved.tv_sec = moved.tv_sec > offset() ? moved.tv_sec - offset() : 0;
  return moved;
}

int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *t) {
  REAL(pthread_cond_clockwait);
  /* Who asks for a monotonic clock does so with clockwait, or far below any time of day. */
  struct timespec moved = t->tv_sec > 1000000000 ? true_time(t) : *t;
  return real(c, m, t->tv_sec > 1000000000 ? CLOCK_REALTIME : CLOCK_MONOTONIC, &moved);
}

int pthread_cond_clockwait(pthread_cond_t *c, pthread_mutex_t *m, clockid_t id,
                           const struct timespec *t) {
  REAL(pthread_cond_clockwait);
  struct timespec moved = of_day(id) ? true_time(t) : *t;
  return real(c, m, id, &moved);
}

int pthread_mutex_timedlock(pthread_mutex_t *m, const struct timespec *t) {
  REAL(pthread_mutex_timedlock);
  struct timespec moved = true_time(t);
  return real(m, &moved);
}

int sem_timedwait(sem_t *s, const struct timespec *t) {
  REAL(sem_timedwait);
  struct timespec moved = true_time(t);
  return real(s, &moved);
}

long syscall(long number, ...) {
  static long (*real)(long, ...);
  if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  va_list given;
  va_start(given, number);
  long a[6];
  for (int i = 0; i < 6; i++) a[i] = va_arg(given, long);
  va_end(given);
  struct timespec moved;
  if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) && a[3]) {
    moved = true_time((const struct timespec *)a[3]);
    a[3] = (long)&moved;
  }
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
