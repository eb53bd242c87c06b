#include "textflag.h"

// SHA-256 of eight messages of one length at once, one in each lane of 32 bits. The
// algorithm is that of FIPS 180-4, section 6.2.2, word for word; AVX-512 has rotations
// and functions of three operands, and thirty-two registers, so that a round is 17
// instructions and nothing is spilled.
//
// Registers: Y0..Y7 a..h, Y8..Y23 the last sixteen words of the schedule, Y24..Y30
// scratch, Y31 the order of bytes. AX BX CX DX SI DI R10 R11 the messages, R9 the
// offset in them, R12 the state, R13 the constants, R8 a count.

// ROUND is one round; its caller rotates the names. t1 is built up in h.
#define ROUND(a, b, c, d, e, f, g, h, w, k) \
	VPADDD      w, h, h               \
	VPADDD.BCST (k*4)(R13), h, h      \
	VPRORD      $6, e, Y24            \
	VPRORD      $11, e, Y25           \
	VPRORD      $25, e, Y26           \
	VMOVDQA32   e, Y27                \
	VPTERNLOGD  $0xca, g, f, Y27      \
	VPTERNLOGD  $0x96, Y24, Y25, Y26  \
	VPADDD      Y27, h, h             \
	VPADDD      Y26, h, h             \
	VPADDD      h, d, d               \
	VPRORD      $2, a, Y24            \
	VPRORD      $13, a, Y25           \
	VPRORD      $22, a, Y26           \
	VMOVDQA32   a, Y27                \
	VPTERNLOGD  $0xe8, c, b, Y27      \
	VPTERNLOGD  $0x96, Y24, Y25, Y26  \
	VPADDD      Y27, h, h             \
	VPADDD      Y26, h, h

// SCHEDULE replaces the word w, which was used, by the one sixteen rounds later.
#define SCHEDULE(w, w1, w9, w14) \
	VPRORD     $7, w1, Y28           \
	VPRORD     $18, w1, Y29          \
	VPSRLD     $3, w1, Y30           \
	VPTERNLOGD $0x96, Y28, Y29, Y30  \
	VPADDD     w9, w, w              \
	VPADDD     Y30, w, w             \
	VPRORD     $17, w14, Y28         \
	VPRORD     $19, w14, Y29         \
	VPSRLD     $10, w14, Y30         \
	VPTERNLOGD $0x96, Y28, Y29, Y30  \
	VPADDD     Y30, w, w

// WORDS loads 32 bytes of each message at off and turns the rows into columns: w0..w7
// become eight words of all messages. Y0..Y7 are lost.
#define WORDS(off, w0, w1, w2, w3, w4, w5, w6, w7) \
	VMOVDQU32   off(AX)(R9*1), Y0   \
	VMOVDQU32   off(BX)(R9*1), Y1   \
	VMOVDQU32   off(CX)(R9*1), Y2   \
	VMOVDQU32   off(DX)(R9*1), Y3   \
	VMOVDQU32   off(SI)(R9*1), Y4   \
	VMOVDQU32   off(DI)(R9*1), Y5   \
	VMOVDQU32   off(R10)(R9*1), Y6  \
	VMOVDQU32   off(R11)(R9*1), Y7  \
	VPUNPCKLDQ  Y1, Y0, w0          \
	VPUNPCKHDQ  Y1, Y0, w1          \
	VPUNPCKLDQ  Y3, Y2, w2          \
	VPUNPCKHDQ  Y3, Y2, w3          \
	VPUNPCKLDQ  Y5, Y4, w4          \
	VPUNPCKHDQ  Y5, Y4, w5          \
	VPUNPCKLDQ  Y7, Y6, w6          \
	VPUNPCKHDQ  Y7, Y6, w7          \
	VPUNPCKLQDQ w2, w0, Y0          \
	VPUNPCKHQDQ w2, w0, Y1          \
	VPUNPCKLQDQ w3, w1, Y2          \
	VPUNPCKHQDQ w3, w1, Y3          \
	VPUNPCKLQDQ w6, w4, Y4          \
	VPUNPCKHQDQ w6, w4, Y5          \
	VPUNPCKLQDQ w7, w5, Y6          \
	VPUNPCKHQDQ w7, w5, Y7          \
	VSHUFI32X4  $0, Y4, Y0, w0      \
	VSHUFI32X4  $0, Y5, Y1, w1      \
	VSHUFI32X4  $0, Y6, Y2, w2      \
	VSHUFI32X4  $0, Y7, Y3, w3      \
	VSHUFI32X4  $3, Y4, Y0, w4      \
	VSHUFI32X4  $3, Y5, Y1, w5      \
	VSHUFI32X4  $3, Y6, Y2, w6      \
	VSHUFI32X4  $3, Y7, Y3, w7      \
	VPSHUFB     Y31, w0, w0         \
	VPSHUFB     Y31, w1, w1         \
	VPSHUFB     Y31, w2, w2         \
	VPSHUFB     Y31, w3, w3         \
	VPSHUFB     Y31, w4, w4         \
	VPSHUFB     Y31, w5, w5         \
	VPSHUFB     Y31, w6, w6         \
	VPSHUFB     Y31, w7, w7

// func blocks8(state *[8][8]uint32, p *[8]*byte, n int)
TEXT ·blocks8(SB), NOSPLIT, $0-24
	MOVQ state+0(FP), R12
	MOVQ p+8(FP), R8
	MOVQ 0(R8), AX
	MOVQ 8(R8), BX
	MOVQ 16(R8), CX
	MOVQ 24(R8), DX
	MOVQ 32(R8), SI
	MOVQ 40(R8), DI
	MOVQ 48(R8), R10
	MOVQ 56(R8), R11
	XORQ R9, R9

	VBROADCASTI32X4 bigEndian<>(SB), Y31

block:
	WORDS(0, Y8, Y9, Y10, Y11, Y12, Y13, Y14, Y15)
	WORDS(32, Y16, Y17, Y18, Y19, Y20, Y21, Y22, Y23)
	VMOVDQU32 0(R12), Y0
	VMOVDQU32 32(R12), Y1
	VMOVDQU32 64(R12), Y2
	VMOVDQU32 96(R12), Y3
	VMOVDQU32 128(R12), Y4
	VMOVDQU32 160(R12), Y5
	VMOVDQU32 192(R12), Y6
	VMOVDQU32 224(R12), Y7
	LEAQ constants<>(SB), R13
	MOVQ $3, R8

sixteen:
	ROUND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y8, 0)
	SCHEDULE(Y8, Y9, Y17, Y22)
	ROUND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y9, 1)
	SCHEDULE(Y9, Y10, Y18, Y23)
	ROUND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y10, 2)
	SCHEDULE(Y10, Y11, Y19, Y8)
	ROUND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y11, 3)
	SCHEDULE(Y11, Y12, Y20, Y9)
	ROUND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y12, 4)
	SCHEDULE(Y12, Y13, Y21, Y10)
	ROUND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y13, 5)
	SCHEDULE(Y13, Y14, Y22, Y11)
	ROUND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y14, 6)
	SCHEDULE(Y14, Y15, Y23, Y12)
	ROUND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y15, 7)
	SCHEDULE(Y15, Y16, Y8, Y13)
	ROUND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y16, 8)
	SCHEDULE(Y16, Y17, Y9, Y14)
	ROUND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y17, 9)
	SCHEDULE(Y17, Y18, Y10, Y15)
	ROUND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y18, 10)
	SCHEDULE(Y18, Y19, Y11, Y16)
	ROUND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y19, 11)
	SCHEDULE(Y19, Y20, Y12, Y17)
	ROUND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y20, 12)
	SCHEDULE(Y20, Y21, Y13, Y18)
	ROUND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y21, 13)
	SCHEDULE(Y21, Y22, Y14, Y19)
	ROUND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y22, 14)
	SCHEDULE(Y22, Y23, Y15, Y20)
	ROUND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y23, 15)
	SCHEDULE(Y23, Y8, Y16, Y21)
	ADDQ $64, R13
	DECQ R8
	JNZ  sixteen

	ROUND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y8, 0)
	ROUND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y9, 1)
	ROUND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y10, 2)
	ROUND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y11, 3)
	ROUND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y12, 4)
	ROUND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y13, 5)
	ROUND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y14, 6)
	ROUND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y15, 7)
	ROUND(Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y16, 8)
	ROUND(Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y6, Y17, 9)
	ROUND(Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y5, Y18, 10)
	ROUND(Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y4, Y19, 11)
	ROUND(Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y3, Y20, 12)
	ROUND(Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y2, Y21, 13)
	ROUND(Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y1, Y22, 14)
	ROUND(Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y0, Y23, 15)

	VPADDD 0(R12), Y0, Y0
	VPADDD 32(R12), Y1, Y1
	VPADDD 64(R12), Y2, Y2
	VPADDD 96(R12), Y3, Y3
	VPADDD 128(R12), Y4, Y4
	VPADDD 160(R12), Y5, Y5
	VPADDD 192(R12), Y6, Y6
	VPADDD 224(R12), Y7, Y7
	VMOVDQU32 Y0, 0(R12)
	VMOVDQU32 Y1, 32(R12)
	VMOVDQU32 Y2, 64(R12)
	VMOVDQU32 Y3, 96(R12)
	VMOVDQU32 Y4, 128(R12)
	VMOVDQU32 Y5, 160(R12)
	VMOVDQU32 Y6, 192(R12)
	VMOVDQU32 Y7, 224(R12)
	ADDQ $64, R9
	DECQ n+16(FP)
	JNZ  block
	VZEROUPPER
	RET

// func cpuid(leaf, sub uint32) (a, b, c, d uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-24
	MOVL leaf+0(FP), AX
	MOVL sub+4(FP), CX
	CPUID
	MOVL AX, a+8(FP)
	MOVL BX, b+12(FP)
	MOVL CX, c+16(FP)
	MOVL DX, d+20(FP)
	RET

// func xgetbv() uint32
TEXT ·xgetbv(SB), NOSPLIT, $0-4
	XORL CX, CX
	XGETBV
	MOVL AX, ret+0(FP)
	RET

// The words of a message are big endian.
DATA bigEndian<>+0(SB)/8, $0x0405060700010203
DATA bigEndian<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL bigEndian<>(SB), RODATA|NOPTR, $16

// FIPS 180-4, section 4.2.2.
DATA constants<>+0(SB)/8, $0x71374491428a2f98
DATA constants<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA constants<>+16(SB)/8, $0x59f111f13956c25b
DATA constants<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA constants<>+32(SB)/8, $0x12835b01d807aa98
DATA constants<>+40(SB)/8, $0x550c7dc3243185be
DATA constants<>+48(SB)/8, $0x80deb1fe72be5d74
DATA constants<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA constants<>+64(SB)/8, $0xefbe4786e49b69c1
DATA constants<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA constants<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA constants<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA constants<>+96(SB)/8, $0xa831c66d983e5152
DATA constants<>+104(SB)/8, $0xbf597fc7b00327c8
DATA constants<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA constants<>+120(SB)/8, $0x1429296706ca6351
DATA constants<>+128(SB)/8, $0x2e1b213827b70a85
DATA constants<>+136(SB)/8, $0x53380d134d2c6dfc
DATA constants<>+144(SB)/8, $0x766a0abb650a7354
DATA constants<>+152(SB)/8, $0x92722c8581c2c92e
DATA constants<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA constants<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA constants<>+176(SB)/8, $0xd6990624d192e819
DATA constants<>+184(SB)/8, $0x106aa070f40e3585
DATA constants<>+192(SB)/8, $0x1e376c0819a4c116
DATA constants<>+200(SB)/8, $0x34b0bcb52748774c
DATA constants<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA constants<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA constants<>+224(SB)/8, $0x78a5636f748f82ee
DATA constants<>+232(SB)/8, $0x8cc7020884c87814
DATA constants<>+240(SB)/8, $0xa4506ceb90befffa
DATA constants<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL constants<>(SB), RODATA|NOPTR, $256
