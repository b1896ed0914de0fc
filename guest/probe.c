/*
 * An init that only tells that it runs: the boot benchmark waits for its reboot.
 * It needs no library, so that what is measured is the kernel.
 */

#define SYS_REBOOT 169L
#define MAGIC_1 0xfee1deadL
#define MAGIC_2 672274793L
#define RESTART 0x1234567L

void _start(void)
{
	long result;
	register long unused __asm__("r10") = 0;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(SYS_REBOOT), "D"(MAGIC_1), "S"(MAGIC_2), "d"(RESTART), "r"(unused)
			 : "rcx", "r11", "memory");
	for (;;)
		;
}
