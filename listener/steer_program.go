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
//	if (not a SYN)
//		return start;
//	best = INT64_MAX;
//	for (i = 0; i < loops; i++) {
//		turn = i - start;
//		if (turn < 0) turn += loops;
//		key = (lane[i].steered - lane[i].released) << 8 | turn;
//		if (key < best) best = key;
//	}
//	loop = (best & 0xff) + start;
//	if (loop >= loops) loop -= loops;
//	__sync_fetch_and_add(&lane[loop].steered, 1);
//	return loop;
//
// Among equal loads the first from a random start on wins. The winner is read
// from the key instead of kept in a variable, as the kernel's verifier would
// follow each value of that one separately: 2^loops paths. Lanes are looked up
// one by one, as computing their addresses takes CAP_PERFMON besides CAP_BPF.
//
// Two CPUs that run it at one moment may choose the same loop; the next
// connection makes up for it.
func steerProgram(mapFD, loops int) asm.Instructions {
	p := asm.Instructions{
		asm.Mov.Reg(regPacket, asm.R1),
		asm.FnGetPrandomU32.Call(),
		asm.Mov.Reg32(regStart, asm.R0),
		asm.Mul.Imm(regStart, int32(loops)),
		asm.RSh.Imm(regStart, 32),
	}
	p = append(p, onlySYN()...)
	p = append(p, asm.LoadMapPtr(regLanes, mapFD).WithSymbol("syn"))
	if loops <= scanMax {
		p = append(p, scan(loops)...)
	} else {
		p = append(p, draw(loops)...)
	}
	p = append(p, lookUp(regWinner)...)
	return append(p,
		asm.Mov.Imm(asm.R1, 1),
		asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, steeredOff),
		asm.Mov.Reg(asm.R0, regWinner),
		asm.Return(),
		// Never happens, but the kernel's verifier wants it handled.
		asm.Mov.Imm(asm.R0, -1).WithSymbol("none"), // no socket has that number: the kernel's hash chooses
		asm.Return(),
	)
}

// lookUp leaves the address of a loop's lane in R0.
func lookUp(loop asm.Register) asm.Instructions {
	const key = -4 // on the stack
	return asm.Instructions{
		asm.StoreMem(asm.RFP, key, loop, asm.Word),
		asm.Mov.Reg(asm.R1, regLanes),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "none"),
	}
}

// Registers that calls preserve.
const (
	regStart  = asm.R6
	regLanes  = asm.R7 // the map of lanes
	regWinner = asm.R8
	regPacket = asm.R9 // before the choice
	regRandom = asm.R9 // while choosing
)

// onlySYN goes on at "syn" with what opens a connection, and returns a random
// loop for what does not: the kernel also asks where to send the stray segments
// of connections that are gone, such as a FIN that comes twice. The ACK that
// brings back a SYN cookie is one of those too. Packets that it does not
// understand (IPv4 options, IPv6 extension headers) pass for SYNs.
func onlySYN() asm.Instructions {
	const (
		headerNet = 1 // BPF_HDR_START_NET: offsets count from the IP header
		head      = 34
		at        = -48 // on the stack
		flagsV4   = 20 + 13
		flagsV6   = 40 + 13
		syn, ack  = 0x02, 0x10
	)
	load := func(off, n int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, regPacket),
			asm.Mov.Imm(asm.R2, off),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, at),
			asm.Mov.Imm(asm.R4, n),
			asm.Mov.Imm(asm.R5, headerNet),
			asm.FnSkbLoadBytesRelative.Call(),
			asm.JNE.Imm(asm.R0, 0, "syn"),
		}
	}
	p := append(load(0, head),
		asm.LoadMem(asm.R1, asm.RFP, at, asm.Byte),
		asm.JNE.Imm(asm.R1, 0x45, "v6"), // version 4, no options
		asm.LoadMem(asm.R1, asm.RFP, at+flagsV4, asm.Byte),
		asm.Ja.Label("flags"),
		asm.RSh.Imm(asm.R1, 4).WithSymbol("v6"),
		asm.JNE.Imm(asm.R1, 6, "syn"),
		asm.LoadMem(asm.R1, asm.RFP, at+6, asm.Byte), // next header
		asm.JNE.Imm(asm.R1, 6, "syn"),
	)
	p = append(p, load(flagsV6, 1)...)
	return append(p,
		asm.LoadMem(asm.R1, asm.RFP, at, asm.Byte),
		asm.And.Imm(asm.R1, syn|ack).WithSymbol("flags"),
		asm.JEq.Imm(asm.R1, syn, "syn"),
		asm.Mov.Reg(asm.R0, regStart),
		asm.Return(),
	)
}

// scan looks at all loops.
func scan(loops int) asm.Instructions {
	const (
		key, turn = asm.R1, asm.R2
		best      = regWinner
	)
	p := asm.Instructions{asm.LoadImm(best, math.MaxInt64, asm.DWord)}
	for i := range loops {
		ahead, worse := fmt.Sprintf("ahead%d", i), fmt.Sprintf("worse%d", i)
		p = append(p, asm.Mov.Imm(asm.R3, int32(i)))
		p = append(p, lookUp(asm.R3)...)
		p = append(p,
			asm.LoadMem(key, asm.R0, steeredOff, asm.DWord),
			asm.LoadMem(turn, asm.R0, releasedOff, asm.DWord),
			asm.Sub.Reg(key, turn),
			asm.LSh.Imm(key, 8),
			asm.Mov.Imm(turn, int32(i)),
			asm.Sub.Reg(turn, regStart),
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
		asm.Add.Reg(best, regStart),
		asm.JLT.Imm(best, int32(loops), "found"),
		asm.Sub.Imm(best, int32(loops)),
		asm.Mov.Reg(best, best).WithSymbol("found"),
	)
}

// draw looks at a few random loops. One random number of 32 bits does for two
// of them.
func draw(loops int) asm.Instructions {
	const (
		load, released, loop = asm.R1, asm.R2, asm.R3
		least                = regStart
		drawn                = -8 // on the stack
	)
	p := asm.Instructions{
		asm.LoadImm(least, math.MaxInt64, asm.DWord),
		asm.Mov.Imm(regWinner, 0),
	}
	for i := range draws {
		worse := fmt.Sprintf("worse%d", i)
		if i%2 == 0 {
			p = append(p, asm.FnGetPrandomU32.Call(), asm.Mov.Reg(regRandom, asm.R0))
		} else {
			p = append(p, asm.RSh.Imm(regRandom, 16))
		}
		p = append(p,
			asm.Mov.Reg(loop, regRandom),
			asm.And.Imm(loop, 0xffff),
			asm.Mul.Imm(loop, int32(loops)),
			asm.RSh.Imm(loop, 16),
			asm.StoreMem(asm.RFP, drawn, loop, asm.Word),
		)
		p = append(p, lookUp(loop)...)
		p = append(p,
			asm.LoadMem(load, asm.R0, steeredOff, asm.DWord),
			asm.LoadMem(released, asm.R0, releasedOff, asm.DWord),
			asm.Sub.Reg(load, released),
			asm.JSGE.Reg(load, least, worse),
			asm.Mov.Reg(least, load),
			asm.LoadMem(regWinner, asm.RFP, drawn, asm.Word),
			asm.Mov.Reg(regWinner, regWinner).WithSymbol(worse), // a place to jump to
		)
	}
	return p
}
