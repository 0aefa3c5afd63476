      PROGRAM TIDES
C     Prints the height of the tide at the harbour for each hour.
      INTEGER HOUR
      REAL HEIGHT
      DO 10 HOUR = 0, 23
         CALL TIDEHT(REAL(HOUR), HEIGHT)
         CALL WARN(HOUR, HEIGHT)
         WRITE (*, 20) HOUR, HEIGHT
   10 CONTINUE
   20 FORMAT (1X, I2, ':00', F8.2, ' M')
      END

      SUBROUTINE TIDEHT(T, H)
C     Height H of the tide in metres above chart datum at hour T, from
C     two constituents: the moon's M2 (period 12.42 hours) and the
C     sun's S2 (period 12.00 hours), about a mean level of 3.1 metres.
      REAL T, H, PI
      PARAMETER (PI = 3.14159265)
      H = 3.1 + 1.8 * COS(2.0 * PI * T / 12.42)
     &        + 0.6 * COS(2.0 * PI * T / 12.00)
      END

      SUBROUTINE WARN(HOUR, H)
C     Flood warning: the quay is under water above 5.2 metres.
      INTEGER HOUR
      REAL H
      IF (H .GT. 5.2) THEN
         WRITE (*, *) 'FLOOD WARNING AT HOUR', HOUR
      END IF
      END

      REAL FUNCTION KNOTS(METRES)
C     Converts a current from metres per second into knots.
      REAL METRES
      KNOTS = METRES * 1.943844
      END
