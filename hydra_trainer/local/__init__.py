"""What launcher=local is made of: runs of this machine, in the foreground and in the background.

lock.py       who holds a run directory
directory.py  what is in it, and to whom it belongs
nursery.py    starts jobs in the background, through a process that has imported torch for all
helper.py     that process, and how a job begins its life
gpus.py       gives each of them GPUs of its own
following.py  how they go, from their locks, their results and what they print
"""
