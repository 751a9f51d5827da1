/* A bytecode interpreter: a stack machine whose program is in the input, dispatched by a jump table. */
#include <stdint.h>

enum { HALT, PUSH, LOAD, STORE, ADD, SUB, MUL, AND, SHR, LESS, JUMP, JUMP_IF_ZERO };

uint64_t kernel(uint64_t argument, const uint8_t *program, int64_t *work)
{
    int64_t *variables = work, *top = work + 256; /* top points at the newest value */
    const uint8_t *pc = program;
    variables[0] = argument;
    for (;;) {
        switch (*pc++) {
        case HALT:
            return *top;
        case PUSH:
            *++top = (int8_t)*pc++;
            break;
        case LOAD:
            *++top = variables[*pc++];
            break;
        case STORE:
            variables[*pc++] = *top--;
            break;
        case ADD:
            top--;
            top[0] += top[1];
            break;
        case SUB:
            top--;
            top[0] -= top[1];
            break;
        case MUL:
            top--;
            top[0] *= top[1];
            break;
        case AND:
            top--;
            top[0] &= top[1];
            break;
        case SHR:
            top--;
            top[0] = (uint64_t)top[0] >> (top[1] & 63);
            break;
        case LESS:
            top--;
            top[0] = top[0] < top[1];
            break;
        case JUMP:
            pc = program + *pc;
            break;
        case JUMP_IF_ZERO:
            pc = *top-- ? pc + 1 : program + *pc;
            break;
        default:
            return -1;
        }
    }
}
