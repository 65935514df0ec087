package listener

import (
	"fmt"
	"math"

	"github.com/cilium/ebpf/asm"
)

const (
	// scanMax is up to how many loops the program looks at all of them. That
	// is exact, and reads one cache line per loop.
	scanMax = 16
	// draws is how many loops the program looks at otherwise. The better of
	// two already has a load close to the least with high probability.
	draws = 4

	steeredOff  = 0
	releasedOff = 8
)

// steerProgram answers with the number of the loop that has the least load,
// and adds one to it. In C, with all loops looked at:
//
//	start = (u64)bpf_get_prandom_u32() * loops >> 32;
//	best = INT64_MAX;
//	for (i = 0; i < loops; i++) {
//		turn = i - start;
//		if (turn < 0) turn += loops;
//		key = (lane[i].steered - lane[i].released) << 8 | turn;
//		if (key < best) best = key;
//	}
//	loop = (best & 0xff) + start;
//	if (loop >= loops) loop -= loops;
//	__sync_fetch_and_add(&lane[loop & (lanes - 1)].steered, 1);
//	return loop;
//
// Among equal loads the first from a random start on wins. The winner is read
// from the key instead of kept in a variable, as the kernel's verifier would
// follow each value of that one separately: 2^loops paths.
//
// Two CPUs that run it at one moment may choose the same loop; the next
// connection makes up for it.
func steerProgram(mapFD, loops, lanes int) asm.Instructions {
	const (
		base  = asm.R7
		where = asm.R8 // the winner
	)
	p := asm.Instructions{asm.LoadMapValue(base, mapFD, 0)}
	if loops <= scanMax {
		p = append(p, scan(base, where, loops)...)
	} else {
		p = append(p, draw(base, where, loops, lanes)...)
	}
	return append(p,
		asm.Mov.Reg(asm.R0, where),
		asm.And.Imm(where, int32(lanes-1)),
		asm.Mul.Imm(where, laneSize),
		asm.Add.Reg(base, where),
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(base, asm.R1, asm.DWord, steeredOff),
		asm.Return(),
	)
}

func scan(base, where asm.Register, loops int) asm.Instructions {
	const (
		key, turn = asm.R1, asm.R2
		start     = asm.R6
	)
	best := where
	p := asm.Instructions{
		asm.FnGetPrandomU32.Call(),
		asm.Mov.Reg32(start, asm.R0),
		asm.Mul.Imm(start, int32(loops)),
		asm.RSh.Imm(start, 32),
		asm.LoadImm(best, math.MaxInt64, asm.DWord),
	}
	for i := range loops {
		ahead, worse := fmt.Sprintf("ahead%d", i), fmt.Sprintf("worse%d", i)
		off := int16(i * laneSize)
		p = append(p,
			asm.LoadMem(key, base, off+steeredOff, asm.DWord),
			asm.LoadMem(turn, base, off+releasedOff, asm.DWord),
			asm.Sub.Reg(key, turn),
			asm.LSh.Imm(key, 8),
			asm.Mov.Imm(turn, int32(i)),
			asm.Sub.Reg(turn, start),
			asm.JSGE.Imm(turn, 0, ahead),
			asm.Add.Imm(turn, int32(loops)),
			asm.Or.Reg(key, turn).WithSymbol(ahead),
			asm.JSGE.Reg(key, best, worse),
			asm.Mov.Reg(best, key),
			asm.Mov.Reg(best, best).WithSymbol(worse), // a place to jump to
		)
	}
	return append(p,
		asm.And.Imm(best, 0xff),
		asm.Add.Reg(best, start),
		asm.JLT.Imm(best, int32(loops), "found"),
		asm.Sub.Imm(best, int32(loops)),
		asm.Mov.Reg(best, best).WithSymbol("found"),
	)
}

// draw looks at a few random loops. One random number of 32 bits does for two
// of them.
func draw(base, where asm.Register, loops, lanes int) asm.Instructions {
	const (
		loop, lane, load, released = asm.R1, asm.R2, asm.R4, asm.R5
		least                      = asm.R6
		random                     = asm.R9
	)
	p := asm.Instructions{
		asm.LoadImm(least, math.MaxInt64, asm.DWord),
		asm.Mov.Imm(where, 0),
	}
	for i := range draws {
		worse := fmt.Sprintf("worse%d", i)
		if i%2 == 0 {
			p = append(p, asm.FnGetPrandomU32.Call(), asm.Mov.Reg(random, asm.R0))
		} else {
			p = append(p, asm.RSh.Imm(random, 16))
		}
		p = append(p,
			asm.Mov.Reg(loop, random),
			asm.And.Imm(loop, 0xffff),
			asm.Mul.Imm(loop, int32(loops)),
			asm.RSh.Imm(loop, 16),
			asm.Mov.Reg(lane, loop),
			asm.And.Imm(lane, int32(lanes-1)),
			asm.Mul.Imm(lane, laneSize),
			asm.Add.Reg(lane, base),
			asm.LoadMem(load, lane, steeredOff, asm.DWord),
			asm.LoadMem(released, lane, releasedOff, asm.DWord),
			asm.Sub.Reg(load, released),
			asm.JSGE.Reg(load, least, worse),
			asm.Mov.Reg(least, load),
			asm.Mov.Reg(where, loop),
			asm.Mov.Reg(where, where).WithSymbol(worse), // a place to jump to
		)
	}
	return p
}
