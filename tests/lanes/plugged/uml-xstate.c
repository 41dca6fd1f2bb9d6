// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
/* A ptrace for User Mode Linux on processors with AMX, preloaded in place of the C library's.
 *
 * User Mode Linux 6.1 hands PTRACE_SETREGSET a processor state of a size that it was built with. A kernel whose
 * processor has more state answers EFAULT. Such a request is repeated with the state followed by zeros, up to the
 * processor's own size (CPUID leaf 0xd, ECX): zeros there mean that the rest is in its initial state.
 */
#include <cpuid.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NT_X86_XSTATE 0x202

static long set_padded_xstate(long pid, const struct iovec *given)
{
	static char state[64 * 1024];
	unsigned int eax, ebx, size, edx;

	__cpuid_count(0xd, 0, eax, ebx, size, edx);
	if (size > sizeof(state) || given->iov_len > size) {
		errno = EFAULT;
		return -1;
	}
	memcpy(state, given->iov_base, given->iov_len);
	memset(state + given->iov_len, 0, size - given->iov_len);
	struct iovec padded = { state, size };
	return syscall(SYS_ptrace, (long)PTRACE_SETREGSET, pid, (long)NT_X86_XSTATE, &padded);
}

long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	long pid = va_arg(arguments, long);
	long address = va_arg(arguments, long);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	/* For PTRACE_PEEK requests the system call stores the value; the C library's function returns it. */
	if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
		long word;
		long result = syscall(SYS_ptrace, (long)request, pid, address, &word);
		return result < 0 ? result : word;
	}
	long result = syscall(SYS_ptrace, (long)request, pid, address, data);
	if (result < 0 && errno == EFAULT && request == PTRACE_SETREGSET && address == NT_X86_XSTATE)
		return set_padded_xstate(pid, data);
	return result;
}
