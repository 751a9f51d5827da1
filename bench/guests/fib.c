/* Fibonacci numbers by double recursion: calls, returns and a stack, hardly anything else. */
#include <stdint.h>

__attribute__((noinline, noclone)) static uint64_t fib(uint64_t n)
{
    return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

uint64_t kernel(uint64_t n)
{
    return fib(n);
}
